"""What the comments of WFDB headers tell of a record.

They have no standard. Known are those of the PhysioNet databases and Challenges: `<age>: 51`, `#Age: 51`,
`#Sex: Male`, `#Dx: 164889003,59118001` (2020, 2021), `# Labels: NORM, STTC` (2024), `# Chagas label: True`
(2025).
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from ecgfast.data.values import identity, labels_of, number_of, sex_of, years

# "Number of leads per subject: 12" is no field: only other known ones stand before one
_NAME = r"<?(?:age|sex|gender|(?:patient|subject)(?:[ _]?id)?)>?"
_FIELD = rf"\s*(?:{_NAME}\s*:\s*\S+(?:\s+(?:years?|yrs?))?[\s,;]+)*<?(?:%s)>?\s*:\s*(\S+)"
_AGE = re.compile(_FIELD % "age", re.IGNORECASE)
_SEX = re.compile(_FIELD % "sex|gender", re.IGNORECASE)
_PATIENT = re.compile(_FIELD % "(?:patient|subject)(?:[ _]?id)?", re.IGNORECASE)
_LABELS = re.compile(
    r"<?(?:dx|labels?)>?\s*:\s*(.*)|(chagas) label\s*:\s*(?:true|1(?:\.0*)?)\s*", re.IGNORECASE
)
_OVER_89 = 90.0  # what PTB-XL, and the Challenges made from it, write as 300


class Told(NamedTuple):
    """What is told; None where it isn't.

    Attributes:
        patient_id: Of the patient.
        labels: Diagnosis codes; "Chagas" where the label of 2025's Challenge is true.
        age: Years.
        sex: "F" or "M".
        warnings: What is odd, and so not told: `kind: details` each.
    """

    patient_id: str | None
    labels: tuple[str, ...]
    age: float | None
    sex: str | None
    warnings: tuple[str, ...] = ()


def read_comments(comments: list[str]) -> Told:
    """What the comments of a header, without their `#`, tell."""
    warnings: list[str] = []
    told = Told(
        patient_id=identity(_first(_PATIENT, comments), warnings),
        labels=tuple(labels_of(list(_labels(comments)), warnings)),
        age=_age(_first(_AGE, comments), warnings),
        sex=sex_of(_first(_SEX, comments), warnings),
    )
    return told._replace(warnings=tuple(warnings))


def _first(field: re.Pattern[str], comments: list[str]) -> str | None:
    matches = (field.match(comment) for comment in comments)
    return next((match[1] for match in matches if match), None)


def _labels(comments: list[str]) -> Iterable[str]:
    for comment in comments:
        if match := _LABELS.fullmatch(comment):
            codes = "Chagas" if match[2] else match[1]
            yield from filter(None, (code.strip() for code in codes.split(",")))


def _age(text: str | None, warnings: list[str]) -> float | None:
    return _OVER_89 if number_of(text) == 300 else years(text, warnings)
