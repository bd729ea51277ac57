"""Text of documents and names as they can be shown: cut short, and without what moves a cursor or breaks a page."""

import unicodedata


def shortened(text: str, *, length: int) -> str:
    """At most `length` characters, the last of them an ellipsis where something was cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def printable(text: str) -> str:
    """With a replacement character for each control character but line ends and tabs."""
    return "".join(
        one if one in "\n\t" or unicodedata.category(one) != "Cc" else "\N{REPLACEMENT CHARACTER}" for one in text
    )
