"""Settings as they must be typed in a shell: what an error message shows must work when pasted."""

import re
import shlex

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS = ("null", "true", "false", "inf", "nan")  # Hydra reads these as values, not as text
_DICT_KEY = re.compile(r"[A-Za-z_]([A-Za-z0-9_ .-]*[A-Za-z0-9_])?")  # what Hydra takes unquoted


def text_setting(key: str, value: str) -> str:
    r"""Write a setting so that shell and Hydra both read `value` as meant.

    >>> print(text_setting("data.path", "my file (1).csv"))
    'data.path="my file (1).csv"'
    """
    return shlex.quote(f"{key}={_hydra(value)}")


def list_setting(key: str, name: str) -> str:
    """Write a list of one name.

    >>> print(list_setting("data.drop", "id"), list_setting("data.drop", "a, b"))
    data.drop=[id] 'data.drop=["a, b"]'
    """
    if _PLAIN.fullmatch(name) and name.lower() not in _WORDS:
        return f"{key}=[{name}]"
    return shlex.quote(f"{key}=[{_hydra(name)}]")


def kind_setting(column: str, kind: str) -> str:
    """Write the kind of one column; for a name that Hydra's grammar lacks, as lines of a yaml.

    >>> print(kind_setting("zip code", "category"))
    'data.kinds={zip code: category}'
    """
    if _DICT_KEY.fullmatch(column):
        return shlex.quote(f"data.kinds={{{column}: {kind}}}")
    return f"data: {{kinds: {{{_hydra(column)}: {kind}}}}} in a yaml below conf/experiment/"


def _hydra(value: str) -> str:
    """Quote for Hydra: backslashes count only before a quote; `${` would be an interpolation."""
    value = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value)
    return '"' + value.replace("${", "\\${") + '"'
