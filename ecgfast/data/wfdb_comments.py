"""What the comments of WFDB headers tell of a record.

They have no standard. Known are those of the PhysioNet databases and Challenges: `<age>: 51`, `#Age: 51`,
`#Sex: Male`, `#Dx: 164889003,59118001` (2020, 2021), `# Labels: NORM, STTC` (2024), `# Chagas label: True`
(2025).
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

_FIELD = r"(?:^|\s)<?{}>?\s*:\s*(\S+)"
_AGE = re.compile(_FIELD.format("age"), re.IGNORECASE)
_SEX = re.compile(_FIELD.format("(?:sex|gender)"), re.IGNORECASE)
_PATIENT = re.compile(_FIELD.format(r"(?:patient|subject)(?:[ _]?id)?"), re.IGNORECASE)
_LABELS = re.compile(r"<?(?:dx|labels?)>?\s*:\s*(.*)", re.IGNORECASE)
_CHAGAS = re.compile(r"chagas label\s*:\s*(?:true|1(?:\.0*)?)\s*", re.IGNORECASE)
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}
_OVER_89 = 90.0  # what PTB-XL, and the Challenges made from it, write as 300


class Told(NamedTuple):
    """What is told; None where it isn't.

    Attributes:
        patient_id: Of the patient.
        labels: Diagnosis codes; "Chagas" where the label of 2025's Challenge is true.
        age: Years.
        sex: "F" or "M".
    """

    patient_id: str | None
    labels: tuple[str, ...]
    age: float | None
    sex: str | None


def read_comments(comments: list[str]) -> Told:
    """What the comments of a header, without their `#`, tell."""
    return Told(
        patient_id=_first(_PATIENT, comments),
        labels=tuple(dict.fromkeys(_labels(comments))),
        age=_age(_first(_AGE, comments)),
        sex=_SEXES.get((_first(_SEX, comments) or "").lower()),
    )


def _first(field: re.Pattern[str], comments: list[str]) -> str | None:
    matches = (field.search(comment) for comment in comments)
    return next((match[1] for match in matches if match), None)


def _labels(comments: list[str]) -> Iterable[str]:
    for comment in comments:
        if match := _LABELS.fullmatch(comment):
            yield from filter(None, (code.strip() for code in match[1].split(",")))
        elif _CHAGAS.fullmatch(comment):
            yield "Chagas"


def _age(text: str | None) -> float | None:
    try:
        age = float(text or "nan")
    except ValueError:
        return None
    if not (math.isfinite(age) and age >= 0):
        return None
    return _OVER_89 if age >= 300 else age
