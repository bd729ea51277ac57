"""What is private data in a text and what is not, type by type; overlaps; and that the prefilter loses nothing."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.prepare.private import detect
from tessera.prepare.private.prefilter import BLOCK_BYTES
from tessera.prepare.private.settings import TYPES
from tessera.prepare.private.spans import Span

DETECTORS = detect.detectors()
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAx1Zs\nq8Jr/9+kQ==\n-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"

FOUND = {
    "email": [
        "john.smith@example.com", "O'Brien+news@mail.example.co.uk", "jörg@münchen.de", "a_b@163.com",
        "x@xn--nxasmq6b.gr",
        "иван@почта.рф", f"{'a' * 64}@example.org",
    ],
    "phone": [
        "+1-555-010-1234", "(555) 123-4567", "555-123-4567", "555.123.4567x89", "1-800-555-0199", "06 12 34 56 78",
        "06.12.34.56.78", "0612345678", "+33 6 12 34 56 78", "+49 30 123456", "+49 (0)30 123456", "030/123456",
        "0171 1234567", "+442079460958", "020 7946 0958", "612 34 56 78", "+34 612 345 678", "(11) 91234-5678",
        "090-1234-5678", "138 1234 5678", "+7 (912) 345-67-89", "0049 30 123456",
        "+33\u00a06\u00a012\u00a034\u00a056\u00a078",
    ],
    "card": [
        "4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111", "378282246310005", "3782 822463 10005",
        "5555 5555 5555 4444", "30569309025904", "3056 930902 5904", "6011111111111117", "4222222222222",
    ],
    "iban": ["DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "GB82 WEST 1234 5698 7654 32",
    "gb82west12345698765432"],
    "ip": ["192.168.1.17", "203.0.113.9", "8.8.4.44", "2001:db8::ff00:42:8329", "fe80::1",
    "2001:0db8:85a3:0000:0000:8a2e:0370:7334"],
    "national_id": [
        "54362315K", "X-2482300W", "2 95 10 99 126 111 93", "RSSMRA85T10A562S", "390.533.447-05", "811218-9876",
        "131052-308T", "85.07.30-033.28", "756.9217.0769.85", "11010519491231002X", "219-09-9999", "AB 12 34 56 C",
    ],
    "secret": [
        "AKIA" "IOSFODNN7EXAMPLF", "ghp" "_16C7e42F292c6912E7710c838347Ae178B4a", "glpat" "-x8Dk2Qp9Lm4Rt7Vw1Zs3",
        JWT, PEM,
        "xoxb" "-123456789012-1234567890123-4mt0t4l1yR4nd0m",
        "sk" "-T3BlbkFJabcd1234EFGHijkl5678MNOPqrst9012UVWX34yz",
        "sk" "_live_4eC39HqLyjWDarjtT1zdp7dc", "AIza" "SyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY",
        "hf" "_aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH",
        "wJ4r7XqP2sB9kL5mN8vT3yH6fD1gA0zQ",
    ],
}  # fmt: skip

BESIDE_ITS_NAME = [
    ("phone", "Tel.: ", "5551234567"), ("phone", '"phone": "', "13812345678"), ("phone", "call me at ",
    "612 345 678"),
    ("phone", "móvil ", "612345678"), ("phone", "电话\uff1a", "13812345678"),
    ("national_id", "BSN: ", "111222333"), ("national_id", "Steuer-ID ", "36 574 261 809"), ("national_id", "CPF ",
    "39053344705"),
    ("national_id", "Aadhaar no. ", "2341 2341 2346"), ("national_id", "PESEL: ", "44051401359"),
    ("national_id", "personnummer ", "198112189876"), ("national_id", "numéro national : ", "85073003328"),
    ("secret", "api_key=", "9f86d081884c7d659a2feaa0c55ad015"), ("secret", 'password: "', "hunter2!"), ("secret",
    "DB_PASSWORD=", "Tr0ub4dor&3"),
    ("secret", "Authorization: Bearer ", "a8f5f167f44f4964e6c998dee827110c"), ("secret", "--token ",
    "a8f5f167f44f4964"),
    ("secret", "postgres://app:", "s3cr3t-pw"), ("secret", "my password is ", "Summer2023!"),
    ("secret", "aws_secret_access_key = ", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzz1234567"),
]  # fmt: skip

NOT_FOUND = [
    "2024-05-06 07:08:09.123456", "06-12-2023", "01.02.2023 10:15", "ISBN 978-3-16-148410-0", "0-306-40615-2",
    "12345678901",
    "1700000000", "1700000000000", "1234567 rows", "3.14159265358979", "+ 3.14159265358979",
    "-2147483648 +2147483647",
    "612 345 678 inhabitants", "01 02 03 04 05", "2001 2002 2003 2004 2005", "4111 1111 1111 1111 1111 1111",
    "4111111111111112",
    "DE89370400440532013001", "127.0.0.1", "0.0.0.0", "255.255.255.0", "::1", "::", "1.2.3.4", "version 10.12.14.16",
    "pkg==10.12.14.16", "1.22.333.4444", "1.3.6.1.4.1.311", "10:20:30", "x[1::2]", "std::vector", "add::bad",
    "00:1a:2b:3c:4d:5e",
    "54362315A", "111222333", "44051401359", "123456789", "@decorator", "a @ b", "react@18.2.0", "icon@2x.png",
    "user@localhost",
    "git@github.com:org/repo.git", "https://user@example.com/x", f"{'a' * 65}@example.org", "a@b..com", "a@-b.com",
    "password: str", "password=None", "token=tokens[0]", "api_key=os.environ['KEY']", "secret=config.secret",
    "password=getpass()",
    "api_key: <your-key>", "password=${DB_PASSWORD}", "tokenizer=BertTokenizer2",
    "scikit-learn sk-learn-compatible-estimators",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709", "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "Qwen3OmniMoeTalkerTextSparseMoeBlock",
    "https://host:8080/a@b", "<EMAIL>", "<PHONE:012345678901> and <SECRET>: <CARD>", "@angular/core@12.10.3-rc.1",
]  # fmt: skip


def found(text: str) -> list[tuple[str, str]]:
    data = text.encode()
    return [(span.type, data[span.start : span.end].decode()) for span in detect.find(data, by=DETECTORS)]


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in FOUND.items() for value in values])
@pytest.mark.parametrize("around", ["{}", "see {}, and more", '{{"v": "{}"}}', "x = '{}'\n", "客户 {} 。", "(é {} )"])
def test_a_value_is_found_whole_wherever_it_stands(kind: str, value: str, around: str) -> None:
    assert found(around.replace("{}", value)) == [(kind, value)]


@pytest.mark.parametrize(("kind", "name", "value"), BESIDE_ITS_NAME)
def test_a_value_that_needs_its_name_is_found_beside_it(kind: str, name: str, value: str) -> None:
    end = "@db.example/app" if "://" in name else '"' if name.endswith('"') else ""

    assert found(f"- {name}{value}{end}\n") == [(kind, value)]
    assert kind not in {other for other, _ in found(f"- {value}\n")}


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert found(text) == []
    assert found(f"It was {text}, they said.") == []


@pytest.mark.parametrize("country", ["de", "se"])
def test_ids_of_other_countries_are_not_looked_for(country: str) -> None:
    swedish = b"811218-9876"

    spans = detect.find(swedish, by=detect.detectors(types=("national_id",), countries=(country,)))

    assert bool(spans) == (country == "se")


def test_a_type_that_is_off_is_not_looked_for() -> None:
    assert {detector.type for detector in detect.detectors(types=("ip", "iban"))} == {"ip", "iban"}
    assert {detector.type for detector in DETECTORS} == set(TYPES)


spans_strategy = st.lists(
    st.tuples(st.sampled_from(TYPES), st.integers(0, 60), st.integers(1, 20)).map(
        lambda drawn: Span(drawn[0], drawn[1], drawn[1] + drawn[2])
    ),
    max_size=25,
)


@settings(deadline=None)
@given(spans_strategy)
def test_of_overlapping_spans_the_longest_counts_then_the_surest(spans: list[Span]) -> None:
    best_first = sorted(
        set(spans), key=lambda one: (-(one.end - one.start), detect.PRIORITY.index(one.type), one.start)
    )
    taken: set[int] = set()
    wanted = []
    for span in best_first:
        if not taken & set(range(span.start, span.end)):
            wanted.append(span)
            taken |= set(range(span.start, span.end))

    assert detect.without_overlaps(spans) == sorted(wanted, key=lambda one: one.start)
    assert detect.without_overlaps(spans[::-1]) == detect.without_overlaps(spans)


FRAGMENTS = st.sampled_from(
    [value for values in FOUND.values() for value in values]
    + [f"{name}{value}" for _, name, value in BESIDE_ITS_NAME]
    + NOT_FOUND
    + list(" \n\t.,:;-/()<>\"'=@0179aZé猫")
)


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS, max_size=12).map("".join))
def test_every_text_in_which_a_detector_finds_something_passes_its_prefilter(text: str) -> None:
    data = text.encode()
    column = pa.array([data], pa.binary())
    for detector in DETECTORS:
        if any(True for _ in detector.find(data)):
            assert pc.match_substring_regex(column, detector.may)[0].as_py(), detector.may


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS, max_size=12).map("".join))
def test_spans_cut_no_letter_in_two(text: str) -> None:
    data = text.encode()
    for span in detect.find(data, by=DETECTORS):
        assert data[: span.start].decode() + data[span.start : span.end].decode() + data[span.end :].decode() == text


@pytest.mark.parametrize("shift", [0, BLOCK_BYTES // 2, 700])
def test_a_long_text_is_read_as_a_short_one_is(shift: int) -> None:
    """Each value lies over an edge of the blocks that the text is cut into, or so far from one."""
    named = [(kind, name, value) for kind, name, value in BESIDE_ITS_NAME if "://" not in name and '"' not in name]
    planted = [(kind, "", value) for kind, values in FOUND.items() for value in values] + named
    data, wanted = b"", []
    for place, (kind, name, value) in enumerate(planted, start=1):
        middle = place * BLOCK_BYTES + shift - len(value.encode()) // 2
        filler = b"words, none of them private.\n" * BLOCK_BYTES
        data += filler[: middle - len(data) - len(name.encode()) - 1] + b"\n" + f"{name}{value}\n".encode()
        wanted.append(Span(kind, middle, middle + len(value.encode())))

    assert len(data) > detect.LONG_BYTES
    assert detect.find(memoryview(data), by=DETECTORS) == wanted


def test_a_long_text_is_cut_nowhere_that_a_span_could_tell() -> None:
    """Twenty digits are no card number. The last sixteen would be, if they began a text, as they begin every block."""
    lines = b"-" * 27 + b"\n" + b"99994111111111111111 such lines\n" * 8_000

    assert lines[BLOCK_BYTES:].startswith(b"4111111111111111 ")
    assert detect.find(lines, by=DETECTORS) == []
    assert detect.find(lines[BLOCK_BYTES:], by=DETECTORS) == [Span("card", 0, 16)]


@pytest.mark.parametrize(
    "unit",
    ["1", "1 ", "a.", "@a.", "a@b.c", "((1", "+1 ", "00 ", "4111 ", "1.1.", "::", "ffff:", "://a:", "--a-",
    "password=",
     "eyJa.", "AD11 ", "-----BEGIN PRIVATE KEY-----", "aB1_", "tel 1", "@é"],
)  # fmt: skip
def test_long_texts_made_to_be_hard_are_read_to_their_end(unit: str) -> None:
    """Catastrophic backtracking would not come back before the time limit of the suite."""
    data = (unit * (200_000 // len(unit))).encode() + b" reach me: eva@example.org "

    spans = detect.find(memoryview(data), by=DETECTORS)

    assert "eva@example.org" in [data[span.start : span.end].decode() for span in spans if span.type == "email"]
