"""Quality filters in the configuration: a section a filter, off when null, with its paper's thresholds by default.

`quality: {length: {}, symbols: {}}` turns two filters on. Every threshold is one rule, null turns it off, and its name
is in the reason of what it drops: `quality:length:min_words` is what `prepare.quality.length.min_words` decided.

Words are what white space parts. Chinese, Japanese, Thai and other scripts are written without: a document of which
more than half the characters are of such a script is not judged by rules on words (length, symbols, stop words).

Papers: Gopher is Rae et al. 2021 (arXiv 2112.11446, appendix A.1), C4 is Raffel et al. 2020 (JMLR 21/140, section 2.2),
FineWeb is Penedo et al. 2024 (arXiv 2406.17557, section 3).
"""

from typing import Literal

from pydantic import Field, field_validator

from tessera.config import Section

LANGUAGES = frozenset(
    """ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv
    fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb
    lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk
    sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu zxx""".split()  # noqa: SIM905
)
"""ISO 639 codes that the language model tells apart; `zxx` is what is no language: numbers, markup, identifiers."""

BOILERPLATE = (
    "accept cookies", "add to cart", "all rights reserved", "click here", "cookie policy", "create an account",
    "enable javascript", "follow us on", "forgot password", "leave a comment", "log in", "powered by", "privacy policy",
    "read more", "share on facebook", "share this", "sign in", "sign up", "skip to content", "subscribe",
    "terms of service", "terms of use",
)  # fmt: skip


class LengthSettings(Section):
    """How long a document is, and its words (Gopher)."""

    min_chars: int | None = Field(None, ge=1)
    """Characters of the whole document, white space included; no paper's rule."""
    max_chars: int | None = Field(None, ge=1)
    """Characters of the whole document, white space included; no paper's rule."""
    min_words: int | None = Field(50, ge=1)
    """Words."""
    max_words: int | None = Field(100_000, ge=1)
    """Words."""
    min_mean_word_chars: float | None = Field(3, gt=0)
    """Characters of a word, on average."""
    max_mean_word_chars: float | None = Field(10, gt=0)
    """Characters of a word, on average."""


class SymbolSettings(Section):
    """Signs that are not prose, and lines that are items or cut off (Gopher)."""

    max_hashes_per_word: float | None = Field(0.1, ge=0)
    """Number signs, `#`, for each word."""
    max_ellipses_per_word: float | None = Field(0.1, ge=0)
    """Ellipses, three dots or one sign, for each word."""
    max_bullet_lines: float | None = Field(0.9, ge=0, le=1)
    """Share of the lines that begin with one of `bullets`; blank lines are no lines."""
    max_ellipsis_lines: float | None = Field(0.3, ge=0, le=1)
    """Share of the lines that end with an ellipsis."""
    min_words_with_letter: float | None = Field(0.8, ge=0, le=1)
    """Share of the words that have a letter, of any script."""
    bullets: tuple[str, ...] = ("-", "*", "\u2022", "\u2023", "\u25aa", "\u25cf", "\u25e6")
    """Signs that begin an item, a character each."""

    @field_validator("bullets")
    @classmethod
    def _single(cls, bullets: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(bullet) != 1 for bullet in bullets):
            raise ValueError("a bullet is one character")
        return bullets


class DigitSettings(Section):
    """Tables and listings of numbers."""

    max_digits: float | None = Field(0.15, ge=0, le=1)
    """Share of the characters that are decimal digits of any script, white space aside. No paper has such a rule; NeMo
    Curator's filter of numbers has this default."""


class StopWordSettings(Section):
    """Prose has the small words of its language (Gopher): the default list keeps English only."""

    min_words: int = Field(2, ge=1)
    """How many different words of the list a document has at least, in whatever case."""
    words: tuple[str, ...] = Field(("the", "be", "to", "of", "and", "that", "have", "with"), min_length=1)
    """The list."""

    @field_validator("words")
    @classmethod
    def _lower(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return _lowered(words)


class PunctuationSettings(Section):
    """Lists, menus and tables: lines without an end, short lines, lines again (FineWeb)."""

    min_ended_lines: float | None = Field(0.12, ge=0, le=1)
    """Share of the lines that end with terminal punctuation, of any script, or a closing quotation mark."""
    max_short_lines: float | None = Field(0.67, ge=0, le=1)
    """Share of the lines that have fewer characters than `short_line_chars`."""
    short_line_chars: int = Field(30, ge=1)
    """Characters, white space at both ends aside."""
    max_duplicate_line_chars: float | None = Field(0.1, ge=0, le=1)
    """Share of the lines' characters that are in lines which came before."""


class C4Settings(Section):
    """Pages that are no text (C4). C4 cuts lines out; here the same documents are dropped, and no text is changed."""

    no_lorem_ipsum: bool = True
    """Drop what holds the placeholder text."""
    no_braces: bool = True
    """Drop what holds a `{`: programs and style sheets."""
    min_sentences: int | None = Field(5, ge=1)
    """Sentences in the lines that C4 keeps: those with an end, with enough words, and without any of `phrases`."""
    min_line_words: int = Field(3, ge=1)
    """Words of a line that C4 keeps."""
    phrases: tuple[str, ...] = (
        "javascript", "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
        "use cookies",
    )  # fmt: skip
    """Of lines that C4 cuts out, in whatever case."""

    @field_validator("phrases")
    @classmethod
    def _lower(cls, phrases: tuple[str, ...]) -> tuple[str, ...]:
        return _lowered(phrases)


class BoilerplateSettings(Section):
    """Navigation, consent and legal lines around a text."""

    max_lines: float = Field(0.3, ge=0, le=1)
    """Share of the lines that hold one of `phrases`. No paper's threshold."""
    phrases: tuple[str, ...] = Field(BOILERPLATE, min_length=1)
    """What such lines say, in whatever case."""

    @field_validator("phrases")
    @classmethod
    def _lower(cls, phrases: tuple[str, ...]) -> tuple[str, ...]:
        return _lowered(phrases)


class LanguageSettings(Section):
    """Which languages are kept, as py3langid 0.4 tells them (Lui and Baldwin 2012; naive Bayes over byte n-grams)."""

    allowed: tuple[str, ...] = Field(("en",), min_length=1)
    """ISO 639 codes, such as en, de, zh."""
    min_probability: float = Field(0.65, ge=0, le=1)
    """Of the most likely language, over all of the model's; FineWeb asks its own model for 0.65."""
    max_chars: int = Field(1000, ge=1)
    """The language is that of the first so many characters; reading them takes about half a millisecond."""

    @field_validator("allowed")
    @classmethod
    def _known(cls, allowed: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(allowed) - LANGUAGES)
        if unknown:
            raise ValueError(f"the language model knows no {unknown[0]!r}; it knows {' '.join(sorted(LANGUAGES))}")
        return allowed


class RepetitionSettings(Section):
    """Documents that say the same again and again (Gopher, table A1).

    A line, paragraph or run of n words is a duplicate where it came before. Shares of n words are shares of the words'
    characters, each counted once however many runs it is in.
    """

    max_duplicate_lines: float | None = Field(0.30, ge=0, le=1)
    """Share of the lines; blank lines are no lines."""
    max_duplicate_line_chars: float | None = Field(0.20, ge=0, le=1)
    """Share of the lines' characters."""
    max_duplicate_paragraphs: float | None = Field(0.30, ge=0, le=1)
    """Share of the paragraphs, which blank lines part."""
    max_duplicate_paragraph_chars: float | None = Field(0.20, ge=0, le=1)
    """Share of the paragraphs' characters."""
    max_top_2gram: float | None = Field(0.20, ge=0, le=1)
    """Share that is within the most frequent 2 words, if they occur twice; of several, the first to occur."""
    max_top_3gram: float | None = Field(0.18, ge=0, le=1)
    """The same for 3 words."""
    max_top_4gram: float | None = Field(0.16, ge=0, le=1)
    """The same for 4 words."""
    max_duplicate_5gram: float | None = Field(0.15, ge=0, le=1)
    """Share that is within 5 words which came before."""
    max_duplicate_6gram: float | None = Field(0.14, ge=0, le=1)
    """The same for 6 words."""
    max_duplicate_7gram: float | None = Field(0.13, ge=0, le=1)
    """The same for 7 words."""
    max_duplicate_8gram: float | None = Field(0.12, ge=0, le=1)
    """The same for 8 words."""
    max_duplicate_9gram: float | None = Field(0.11, ge=0, le=1)
    """The same for 9 words."""
    max_duplicate_10gram: float | None = Field(0.10, ge=0, le=1)
    """The same for 10 words."""


class QualitySettings(Section):
    """Which documents are good enough to train on; a document that fails several filters is counted by the first."""

    kinds: tuple[Literal["text", "instruction", "chat", "preference"], ...] = ("text",)
    """Kinds of documents that are judged: the filters were made for running text."""
    max_chars: int = Field(1_000_000, ge=1000)
    """Filters look at the first so many characters of a document (the limits on characters of `length` at all of it):
    what a judgement needs in memory is bounded."""
    length: LengthSettings | None = None
    """Too short, too long, words of odd length."""
    digits: DigitSettings | None = None
    """Mostly numbers."""
    symbols: SymbolSettings | None = None
    """Signs instead of words."""
    stop_words: StopWordSettings | None = None
    """No small words."""
    punctuation: PunctuationSettings | None = None
    """Lines that are no sentences."""
    c4: C4Settings | None = None
    """Placeholders, programs, consent banners."""
    boilerplate: BoilerplateSettings | None = None
    """Lines around a text instead of text."""
    repetition: RepetitionSettings | None = None
    """The same again and again."""
    language: LanguageSettings | None = None
    """Not of the languages wanted, or of none."""


def _lowered(phrases: tuple[str, ...]) -> tuple[str, ...]:
    if not all(phrase.strip() for phrase in phrases):
        raise ValueError("a phrase may not be blank; leave it out")
    return tuple(phrase.lower() for phrase in phrases)
