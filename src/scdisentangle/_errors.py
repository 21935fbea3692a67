"""The errors that bad input raises, warnings of it, and checks of options."""

from __future__ import annotations

import difflib
import inspect
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, signature
from math import isfinite
from numbers import Integral, Real


class InputError(ValueError):
    """Input that cannot be used as given; the message names the culprit and the way out."""


class NonFiniteError(ArithmeticError):
    """Training met NaN or infinity; the message names the term, the epoch and the step."""


class MissingKeyError(InputError, KeyError):
    """A column of ``.obs`` or a layer that is not there, as scvi-tools' ``KeyError`` tells it."""

    __str__ = Exception.__str__


def warn_user(message: str) -> None:
    """Warn of what was handed in, at the line outside the package that called into it."""
    names = (info.frame.f_globals.get("__name__", "") for info in inspect.stack(0))
    level = next((i for i, name in enumerate(names, 1) if not name.startswith("scdisentangle")), 1)
    warnings.warn(message, UserWarning, stacklevel=level)


def name_some(names: Iterable[object], limit: int = 3) -> str:
    """Quote the first ``limit`` of ``names`` and count the rest, for use in messages."""
    names = [f"'{name}'" for name in names]
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A closing sentence for a message: the nearest of ``known``, then all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    return hint + (f"Known: {', '.join(known)}." if known else "There are none.")


def argument_names(*functions: Callable) -> set[str]:
    """Names of the arguments that any of some functions, or classes, take by name."""
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    arguments = [a for f in functions for a in signature(f).parameters.values()]
    return {a.name for a in arguments if a.kind in by_name} - {"self"}


def check_options(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise :class:`InputError` for the first name in ``given`` that is not ``known``."""
    known = set(known)
    for name in given:
        if name not in known:
            raise InputError(f"Unknown {what} option '{name}'. {did_you_mean(name, known)}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise :class:`InputError` unless ``value`` is one of ``choices``."""
    choices = tuple(choices)
    if value not in choices:
        raise InputError(f"{name}={value!r} is not an option. {did_you_mean(str(value), choices)}")


def check_positive(**options: float) -> None:
    """Raise :class:`InputError` unless every option is a number above zero."""
    _check(lambda value: value > 0, "a number above zero", options)


def check_not_negative(**options: float) -> None:
    """Raise :class:`InputError` unless every option is a number, zero or more."""
    _check(lambda value: value >= 0, "a number, zero or more", options)


def check_count(**options: int) -> None:
    """Raise :class:`InputError` unless every option is an integer above zero."""
    check_positive(**options)
    _check(lambda value: isinstance(value, Integral), "a whole number", options)


def check_share(**options: float) -> None:
    """Raise :class:`InputError` unless every option is a number in [0, 1]."""
    _check(lambda value: 0 <= value <= 1, "a number from 0 to 1", options)


def check_rate(**options: float) -> None:
    """Raise :class:`InputError` unless every option is a number in [0, 1)."""
    _check(lambda value: 0 <= value < 1, "a number from 0 to below 1", options)


def _check(holds: Callable[[Real], bool], what: str, options: Mapping[str, object]) -> None:
    for option, value in options.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
        if not is_number or not holds(value):
            raise InputError(f"{option}={reprlib.repr(value)} must be {what}.")
