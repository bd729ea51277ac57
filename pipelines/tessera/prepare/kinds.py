"""The four kinds of documents: their columns, content hash and size, and why a row is no document of its kind.

| kind        | document columns               | content hash: SHA-256 of                          |
|-------------|--------------------------------|---------------------------------------------------|
| text        | `text`                         | the text, UTF-8                                   |
| instruction | `messages`                     | `{"kind":"instruction","messages":[...]}`         |
| chat        | `messages`                     | `{"kind":"chat","messages":[...]}`                |
| preference  | `prompt`, `chosen`, `rejected` | `{"chosen":...,"kind":"preference","prompt":...}` |

The JSON is canonical: keys sorted, no spaces, UTF-8. Everything here is an expression that Spark evaluates.
"""

from collections.abc import Callable, Mapping

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, StringType, StructType

MESSAGES = "array<struct<role:string,content:string>>"
COLUMNS = {"text": "string", "messages": MESSAGES, "prompt": "string", "chosen": "string", "rejected": "string"}
"""What a documents table has for contents; null where the kind has no such thing."""

BLANK = r"^[\s\p{Z}\x00]*$"
EDGES = r"^[\s\p{Z}\x00]+|[\s\p{Z}\x00]+$"
BEGINNING = 2**16
"""Characters of a text at which is looked first."""
TURNS = "^(system,)?user,assistant(,user,assistant)*$"
ROLES = ("system", "user", "assistant")


def columns(kind: str, *, contents: Mapping[str, Column]) -> list[Column]:
    """COLUMNS of a source's rows.

    Args:
        contents: what the kind is made of (`SourceSettings.contents`) -> its column.
    """
    if kind == "instruction":
        found = {"messages": _instruction(**contents)}
    elif kind == "chat":
        found = {"messages": F.transform(contents["messages"], lambda one: _message(one["role"], one["content"]))}
    else:
        found = {role: content.cast("string") for role, content in contents.items()}
    return [found.get(name, F.lit(None)).cast(type_name).alias(name) for name, type_name in COLUMNS.items()]


def is_conversation(kind: DataType) -> bool:
    """Whether a column of this type holds conversations: arrays of structs with role and content, both strings."""
    if not isinstance(kind, ArrayType) or not isinstance(kind.elementType, StructType):
        return False
    fields = {field.name: field.dataType for field in kind.elementType.fields}
    return all(isinstance(fields.get(name), StringType) for name in ("role", "content"))


def content_hash(kind: str) -> Column:
    """SHA-256 of a row's contents, as in the table above; null for a text that is null."""
    canonical = _canonical(kind)
    if kind != "text":  # JSON has one character for all bytes that are no text
        texts = _texts(kind)
        raw = F.array_join(F.transform(texts, F.hex), ",", "null")
        is_text = F.coalesce(F.forall(texts, F.is_valid_utf8), F.lit(True))
        canonical = F.when(is_text, canonical).otherwise(F.concat(canonical, raw))
    return F.sha2(canonical.cast("binary"), 256)


def num_bytes(kind: str) -> Column:
    """UTF-8 bytes of a row's contents."""
    if kind == "text":
        return F.octet_length("text").cast("long")
    return _sum(_texts(kind), F.octet_length)


def whole_text() -> Column:
    """All contents of a row, of whatever kind, as one text: a blank line between them."""
    several = (F.array_join(_texts(kind), "\n\n") for kind in ("chat", "preference"))
    return F.coalesce(F.col("text"), *several)


def unfit(kind: str) -> Column:
    """Why a row is no document of its kind; null where it is one."""
    reason = F.when(F.col("doc_id").isNull(), "null_key")
    for name, broken in _broken(kind).items():
        reason = reason.when(broken, name)
    if kind == "text":
        valid, blank = F.is_valid_utf8("text"), _is_blank(F.col("text"))
    else:
        texts = _texts(kind)
        valid, blank = F.forall(texts, F.is_valid_utf8), F.exists(texts, _is_blank)
    return reason.when(~valid, "invalid_utf8").when(blank, "blank")


def too_short(kind: str, *, min_chars: int) -> Column:
    """`too_short` where all contents have fewer characters together, after white space at the ends of each is cut."""
    if kind == "text":
        num_chars = _num_chars(F.col("text"), enough=min_chars)
    else:
        num_chars = _sum(_texts(kind), lambda one: _num_chars(one, enough=min_chars))
    return F.when(num_chars < min_chars, "too_short")


def _is_blank(text: Column) -> Column:
    """Looks at no more than the beginning, where that tells: a regular expression copies what it looks at."""
    return F.substring(text, 1, BEGINNING).rlike(BLANK) & text.rlike(BLANK)


def _num_chars(text: Column, *, enough: int) -> Column:
    """Characters without white space at the ends; of a text whose beginning has enough, the beginning's."""
    first = F.char_length(F.regexp_replace(F.substring(text, 1, BEGINNING), EDGES, ""))
    whole = F.char_length(F.regexp_replace(text, EDGES, ""))
    return F.when(first >= enough, first).otherwise(whole)


def _message(role: Column | str, content: Column) -> Column:
    named = F.lit(role) if isinstance(role, str) else role
    return F.struct(named.alias("role"), content.alias("content"))


def _instruction(*, prompt: Column, response: Column, system: Column | None = None) -> Column:
    """A conversation of one turn; a blank system message is left away."""
    turn = [_message("user", prompt.cast("string")), _message("assistant", response.cast("string"))]
    if system is None:
        return F.array(*turn)
    told = system.cast("string")
    absent = told.isNull() | told.rlike(BLANK)
    return F.when(absent, F.array(*turn)).otherwise(F.array(_message("system", told), *turn))


def _texts(kind: str) -> Column:
    """All contents of a row, as an array of strings."""
    if kind == "preference":
        return F.array("prompt", "chosen", "rejected")
    return F.array("text") if kind == "text" else F.transform("messages", lambda one: one["content"])


def _broken(kind: str) -> dict[str, Column]:
    """Reason -> whether it holds, the first one counts; those that all kinds share come after."""
    if kind == "text":
        return {"null_text": F.col("text").isNull()}
    if kind == "preference":
        null = F.exists(_texts(kind), lambda one: one.isNull())
        return {"null_text": null, "same_answers": F.col("chosen") == F.col("rejected")}
    if kind == "instruction":
        return {"null_text": F.exists(_texts(kind), lambda one: one.isNull())}
    roles = F.transform("messages", lambda one: one["role"])
    return {
        "null_text": F.col("messages").isNull(),
        "broken_chat:no_messages": F.size("messages") == 0,
        "broken_chat:null": F.exists("messages", lambda one: one["role"].isNull() | one["content"].isNull()),
        "broken_chat:unknown_role": F.exists(roles, lambda one: ~one.isin(*ROLES)),
        "broken_chat:last_not_assistant": F.element_at(roles, -1) != "assistant",
        "broken_chat:turns": ~F.array_join(roles, ",").rlike(TURNS),
    }


def _canonical(kind: str) -> Column:
    """What is hashed."""
    named = F.lit(kind).alias("kind")
    if kind == "text":
        return F.col("text")
    if kind == "preference":
        return F.to_json(F.struct("chosen", named, "prompt", "rejected"))
    sorted_keys = F.transform(
        "messages", lambda one: F.struct(*(one[name].alias(name) for name in ("content", "role")))
    )
    return F.to_json(F.struct(named, sorted_keys.alias("messages")))


def _sum(texts: Column, size: Callable[[Column], Column]) -> Column:
    return F.aggregate(texts, F.lit(0).cast("long"), lambda total, one: total + size(one).cast("long"))
