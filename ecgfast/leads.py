"""Names and order of the twelve standard leads, and how others spell them."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ecgfast.errors import EcgfastError, printable

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""The standard leads, in the order in which stores and encoders hold them."""

N_LEADS = len(STANDARD_LEADS)

_INDEX = {name.casefold(): i for i, name in enumerate(STANDARD_LEADS)}
_LIMB = {  # D: derivation, in the Romance languages and Turkish; L: lead
    f"{letter}{number}": i
    for i, roman in enumerate(("i", "ii", "iii"))
    for letter, number in (("d", roman), ("l", roman), ("d", i + 1))
}
_SPELLINGS = _INDEX | _LIMB
_CHEST = {f"c{i}": STANDARD_LEADS.index(f"V{i}") for i in range(1, 7)}
_GAP = r"[\s_.:]*"
_BEFORE = re.compile(
    rf"(?:mdc_ecg_lead_|(?:e[ck]g|leads?|ableitung|abl|d[ée]rivation|derivaci[óo]n|deriva[çc][ãa]o)(?:-|{_GAP}))*"
)
_AFTER = re.compile(
    rf"(?:,?{_GAP}[(\[][munμ]?v[)\]]|[\s_,]{_GAP}[munμ]v|{_GAP}(?:lead|[(\[]einthoven[)\]]))?{_GAP}$"
)
# a minus before a whole name is a sign, so these match names from their start
_IN_PARTS = re.compile(r"(?:(a)[\s_-]?)?(v)[\s_-]?([rlf1-6])|(d)[\s_-]?([1-3]|i{1,3})|(l)[\s_-]?(i{1,3})")
_CHEST_IN_PARTS = re.compile(r"(c)[\s_-]?([1-6])")
_QUOTED = re.compile(r"([\"'])(.*)\1", re.DOTALL)
_LONGEST = 64  # characters of a name that is a lead's: damaged headers have longer ones


def find_lead(name: str) -> int | None:
    """Index of one lead in `STANDARD_LEADS`; None if it is no standard lead.

    Case, the words "ECG" and "Lead" (also IEEE 11073's `MDC_ECG_LEAD_`) and a unit in parentheses don't
    count; DI, D1 and LI are I, and so on. Leads recorded in another way ("MLII", "V", "V3R", "-aVR") and
    names that may be anything else ("ECG 1", "VR", "C3") are not taken for a standard lead.
    """
    return _find_lead(name) if len(name) <= _LONGEST else None


@lru_cache(maxsize=1024)
def _find_lead(name: str) -> int | None:
    return _SPELLINGS.get(_joined(_IN_PARTS, _bare(name)))


def _bare(name: str) -> str:
    """A name without quotation marks, the words before it and the unit after it."""
    text = unicodedata.normalize("NFKC", name).casefold().strip()
    if quoted := _QUOTED.fullmatch(text):
        text = quoted[2].strip()
    return _AFTER.sub("", text[_BEFORE.match(text).end() :])


def _joined(form: re.Pattern[str], text: str) -> str:
    parts = form.fullmatch(text)
    return "".join(filter(None, parts.groups())) if parts else text


def _chest_lead(name: str) -> int | None:
    return _CHEST.get(_joined(_CHEST_IN_PARTS, _bare(name))) if len(name) <= _LONGEST else None


def find_leads(names: Sequence[str]) -> list[int | None]:
    """`find_lead` of all signals of a recording.

    C1 to C6 are V1 to V6 beside a limb lead, where there is no V1 to V6: alone, C3 and C4 are as likely an
    electroencephalogram.
    """
    found = [find_lead(name) for name in names]
    known = [lead for lead in found if lead is not None]
    if known and max(known) < STANDARD_LEADS.index("V1"):
        found = [_chest_lead(name) if lead is None else lead for name, lead in zip(names, found, strict=True)]
    return found


def lead_indices(names: Sequence[str]) -> list[int]:
    """Indices of leads in `STANDARD_LEADS`, in the order asked for.

    Names are spelt in any of the ways of `find_leads`.

    Raises:
        EcgfastError: no names, a bare string, an unknown name, or one lead named twice.
    """
    names = _listed(names)
    if not names:
        raise EcgfastError("leads must be at least one lead, got none")
    indices: list[int] = []
    for name, index in zip(names, find_leads(names), strict=True):
        if index is None:
            raise EcgfastError(
                f"leads must be of {', '.join(STANDARD_LEADS)}, got unknown lead {shown_name(name)!r}"
            )
        if index in indices:
            raise EcgfastError(f"leads must be named once each, got {STANDARD_LEADS[index]} twice")
        indices.append(index)
    return indices


# As torch.compiler.assume_constant_result does, which this module can't import: names are looked up once.
lead_indices._dynamo_marked_constant = True  # type: ignore[attr-defined]


@dataclass(frozen=True)
class LeadNames:
    """What signals are called: the rule of `find_leads`, and what a user adds to it.

    Attributes:
        rename: Pairs of a signal's name and the standard lead that it is, such as ("MLII", "II"). Case and
            the number of blanks in a name don't count.
        by_position: Standard leads that the signals of a record are, in its order, for signals with other
            or no names; "-" for one that is none of them. Empty: signals go by their own names.
    """

    rename: tuple[tuple[str, str], ...] = ()
    by_position: tuple[str, ...] = ()

    @classmethod
    def of(cls, rename: Mapping[str, str] | None = None, leads: Sequence[str] | None = None) -> "LeadNames":
        """From what users give.

        Raises:
            EcgfastError: an unknown lead, a name that is renamed twice, or a lead that is given twice.
        """
        pairs: dict[str, str] = {}
        if rename is not None and not isinstance(rename, Mapping):
            raise EcgfastError(
                f"rename must be a mapping of names to standard leads, got {_one_line(rename)}"
            )
        for name, lead in (rename or {}).items():
            if not isinstance(name, str):
                raise EcgfastError(f"rename must have names that are text, got {_one_line(name)}")
            index = find_lead(lead) if isinstance(lead, str) else None
            if index is None:
                want = ", ".join(STANDARD_LEADS)
                raise EcgfastError(
                    f"rename must make {shown_name(name)!r} one of {want}, got {_one_line(lead)}"
                )
            if _plain(name) in pairs:
                raise EcgfastError(f"rename must have each name once, got {shown_name(name)!r} twice")
            pairs[_plain(name)] = STANDARD_LEADS[index]
        if leads is None:
            return cls(tuple(pairs.items()))
        given = [leads] if isinstance(leads, str) else _listed(leads)
        indices = lead_indices([name for name in given if name.strip() != "-"])
        names = iter(STANDARD_LEADS[index] for index in indices)
        return cls(tuple(pairs.items()), tuple("-" if name.strip() == "-" else next(names) for name in given))

    def renamed(self, names: Sequence[str]) -> list[str]:
        """The names, those of `rename` replaced."""
        renamed = dict(self.rename)
        return [renamed.get(_plain(name), name) for name in names] if renamed else list(names)

    def find(self, names: Sequence[str]) -> list[int | None]:
        """Index of the lead that each signal of a record is, None for those that are none.

        Raises:
            EcgfastError: `by_position` names another number of signals, or calls one otherwise than its own
                name does; two signals are one lead; none is a lead.
        """
        found = find_leads(self.renamed(names))
        if self.by_position:
            found = self._by_position(names, found)
        taken = [lead for lead in found if lead is not None]
        if len(set(taken)) < len(taken):
            twice = next(lead for lead in taken if taken.count(lead) > 1)
            both = ", ".join(names[i] or "unnamed" for i, lead in enumerate(found) if lead == twice)
            raise EcgfastError(f"ambiguous: two signals are lead {STANDARD_LEADS[twice]} ({both})")
        if not taken:
            raise EcgfastError(_no_lead(names))
        return found

    def _by_position(self, names: Sequence[str], found: list[int | None]) -> list[int | None]:
        if len(names) != len(self.by_position):
            raise EcgfastError(
                f"leads: the record has {len(names)} signals, {len(self.by_position)} names were given for it"
            )
        given = [None if name == "-" else _INDEX[name.casefold()] for name in self.by_position]
        for name, own, lead in zip(names, found, given, strict=True):
            if None not in (own, lead) and own != lead:
                raise EcgfastError(f"leads: signal {name} was given the name {STANDARD_LEADS[lead]}")
        return given

    def describe(self) -> dict[str, list[str]]:
        """For `store.json`: nothing where signals go by their own names."""
        described = {}
        if self.rename:
            described["renamed"] = sorted("=".join(pair) for pair in self.rename)
        if self.by_position:
            described["leads_by_position"] = list(self.by_position)
        return described


OWN_NAMES = LeadNames()
"""Signals go by their own names."""


def shown_name(name: str) -> str:
    """A signal's name for people: short, in one line."""
    name = printable(name)
    return (name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}...") or "unnamed"


def _listed(names: object) -> list[str]:
    """Lead names that users give."""
    listed = None if isinstance(names, str | bytes) or not isinstance(names, Iterable) else list(names)
    if listed is None or not all(isinstance(name, str) for name in listed):
        got = names if listed is None else listed
        raise EcgfastError(f"leads must be a list of lead names such as ['I', 'II'], got {_one_line(got)}")
    return listed


def _one_line(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:99]}…"


def _no_lead(names: Iterable[str]) -> str:
    names = list(names)
    if names and not any(names):
        return f"no standard lead: none of the {len(names)} signals has a name, --leads can give them"
    shown = ", ".join(map(shown_name, names)) or "none"
    return f"no standard lead: the signals are {shown}" + (
        " (--rename, --leads; LeadNames.of)" if names else ""
    )


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
