import itertools

import pandas as pd
import pytest

from scdisentangle.tl import DisentanglementReport

LUCK = {"batch": 0.5, "label": 0.34}
TYPES, BATCHES = ["B cells", "NK", "T cells"], ["first", "second"]


def _probe(code, target, within, value, p_value):
    return {
        "measure": "balanced_accuracy",
        "code": code,
        "target": target,
        "within": within,
        "value": value,
        "luck": LUCK[target],
        "p_value": p_value,
    }


@pytest.fixture
def report():
    """Made by hand, so that a picture of it is the same whatever the probes find."""
    of_bio = dict(zip(TYPES, (0.52, 0.75, 0.9), strict=True))
    rows = [
        _probe(c, "batch", "all", v, 0.01) for c, v in zip(CODES, (0.7, 1.0, 0.95), strict=True)
    ]
    rows += [_probe("z_bio", "batch", "mean over labels", 0.72, 0.01)]
    rows += [_probe("unintegrated", "batch", "mean over labels", 0.97, 0.01)]
    rows += [_probe("z_bio", "batch", t, v, 0.5 if v < 0.6 else 0.01) for t, v in of_bio.items()]
    rows += [_probe("unintegrated", "batch", t, 0.97, 0.01) for t in TYPES]
    for code, value in zip(CODES, (0.88, 0.36, 0.91), strict=True):
        rows.append(_probe(code, "label", "all", value + 0.02, 0.01))
        rows.append(_probe(code, "label", "mean over batches", value, 0.01))
    for code, batch in itertools.product(CODES, BATCHES):
        value = {"z_bio": 0.88, "z_nio": 0.36, "unintegrated": 0.91}[code]
        rows.append(_probe(code, "label", batch, value, 0.3 if code == "z_nio" else 0.01))
    for code, share in {"z_bio": 0.8, "z_nio": 0.2}.items():
        rows.append({"measure": "reconstruction_share", "code": code, "value": share})
    for code, dimension in zip(CODES, (6.0, 1.5, 9.0), strict=True):
        rows.append({"measure": "effective_dimension", "code": code, "value": dimension})
    table = pd.DataFrame(rows).fillna({"target": "", "within": "all"})
    return DisentanglementReport(
        table=table,
        status="poor",
        score=0.2,
        verdict="The batch is still readable from z_bio in 2 of 3 types.",
        advice=["Try something else."],
        severities={"batch in z_bio": 0.8},
        batch_key="batch",
        label_key="type",
    )


CODES = ("z_bio", "z_nio", "unintegrated")
