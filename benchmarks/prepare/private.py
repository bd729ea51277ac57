"""How well private data is found: recall and precision by type on generated records, and speed on one core.

    .venv/bin/python benchmarks/prepare/private.py [--records 20000] [--mib 32]

Each record is a docstring of the installed packages and after it a sentence, a line of JSON, CSV, code or a log that
holds one value. The values are made here from the formats' own rules, by a generator that shares nothing with the
detectors; every tenth record holds something that only looks like private data (date, version, ISBN, hash, number).
A value is recalled if one span of its type covers all of it. A span is right if it lies over a value of its type; every
other one counts as wrong, though the docstrings hold some real addresses, which are listed apart.
The second table is speed: all types on, on docstrings alone, from Arrow batch to Arrow batch. About two minutes.
"""

import argparse
import base64
import random
import string
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shard"))
import corpus

from tessera.prepare.private import act, detect
from tessera.prepare.private.replace import Treatment
from tessera.prepare.private.settings import TYPES
from tessera.prepare.private.spans import Span

SEED = 20_260_714
BATCH_ROWS = 10_000
HEX, ALNUM = "0123456789abcdef", string.ascii_letters + string.digits
BASE64URL = ALNUM + "-_"
NAMED = "\0"
"""Ends the words that name a value."""
Random = random.Random


def drawn(rng: Random, alphabet: str, size: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(size))


def digits(rng: Random, pattern: str) -> str:
    """The pattern with each # as a digit, and each N as one from 2 to 9."""
    choices = {"#": string.digits, "N": string.digits[2:]}
    return "".join(rng.choice(choices.get(mark, mark)) for mark in pattern)


def email(rng: Random) -> str:
    first = rng.choice(["anna", "j.smith", "maria.garcia", "lee", "o'brien", "jörg", "user+news", "a_b", "info", "x99"])
    name = first + (str(rng.randrange(1000)) if rng.random() < 0.4 else "")
    host = rng.choice(["example.com", "mail.example.org", "gmail.com", "firma.de", "163.com", "uni-köln.de", "a.co.uk"])
    value = f"{name}@{host}"
    return value.upper() if rng.random() < 0.1 else value


PHONES = (
    "+1-N##-###-####", "+1 (N##) ###-####", "+1 212 ### ####", "(N##) ###-####", "N##-555-####", "N##.###.####",
    "+1N##N######", "1-8##-555-####", "(N##)###-####", "N##-###-####x###", "001-N##-###-####", "+44 20 #### ####",
    "+44 7### ######", "020 7### ####", "07### ######", "(0161) ### ####", "+44(0)20 7### ####", "+49 30 ######",
    "+49 (0)30 ######", "030 ######9", "0171 #######", "0171/#######", "+49 171 #######", "+33 6 ## ## ## ##",
    "06 ## ## ## ##", "01.##.##.##.##", "+33 (0)1 ## ## ## ##", "+34 6## ### ###", "+34 91 ### ## ##", "6## ## ## ##",
    "+39 06 #### ####", "+39 3## #######", "+31 6 ########", "06-2#######", "020-#######", "+46 70 ### ## ##",
    "070-### ## ##", "+41 44 ### ## ##", "044 ### ## ##", "+48 6## ### ###", "+55 11 9####-####", "(11) 9####-####",
    "+91 98### #####", "+81 3-####-####", "03-####-####", "090-####-####", "+86 138 #### ####", "138-####-####",
    "+61 4## ### ###", "0412 ### ###", "+7 (9##) ###-##-##", "8 (9##) ###-##-##", "+351 9## ### ###",
    "+353 86 ### ####", "+852 #### ####", "+47 ## ## ## ##", "+380 67 ### ## ##", "+32 4## ## ## ##",
)  # fmt: skip


def phone(rng: Random) -> str:
    return digits(rng, rng.choice(PHONES))


def with_luhn(number: str) -> str:
    """The number and the digit that makes each second one doubled, from the right, add up to a multiple of ten."""
    for check in string.digits:
        total = 0
        for place, digit in enumerate(reversed(number + check)):
            value = int(digit) * (2 if place % 2 else 1)
            total += value // 10 + value % 10
        if total % 10 == 0:
            return number + check
    raise AssertionError


def card(rng: Random) -> str:
    begin, size = rng.choice(
        [("4", 16), ("4", 13), ("5" + rng.choice("12345"), 16), ("2221", 16), ("2720", 16), ("34", 15), ("37", 15),
         ("6011", 16), ("65", 16), ("36", 14), ("3056", 14), ("3530", 16), ("62", 16), ("2202", 16), ("4", 19)]
    )  # fmt: skip
    number = with_luhn(begin + drawn(rng, string.digits, size - len(begin) - 1))
    gap = rng.choice(["", "", " ", "-"])
    if not gap or size == 13:
        return number
    cuts = [4, 10] if size in (14, 15) else range(4, size, 4)
    places = [0, *cuts, size]
    return gap.join(number[start:end] for start, end in pairwise(places))


IBANS = {
    "DE": "##################", "GB": "MIDL##############", "FR": "#######################",
    "ES": "####################", "IT": "X######################", "NL": "RABO##########", "BE": "############",
    "PL": "########################", "SE": "####################", "NO": "###########", "CH": "#################",
    "PT": "#####################",
    "AT": "################", "FI": "##############", "IE": "AIBK##############", "MT": "MALT#######################",
}  # fmt: skip


def iban(rng: Random) -> str:
    country = rng.choice(sorted(IBANS))
    account = digits(rng, IBANS[country])
    as_number = "".join(
        str(string.ascii_uppercase.index(c) + 10) if c.isalpha() else c for c in account + country + "00"
    )
    value = f"{country}{98 - int(as_number) % 97:02d}{account}"
    return " ".join(value[start : start + 4] for start in range(0, len(value), 4)) if rng.random() < 0.5 else value


def ip(rng: Random) -> str:
    if rng.random() < 0.7:
        return ".".join(str(rng.randrange(10, 250)) for _ in range(3)) + f".{rng.randrange(1, 255)}"
    if rng.random() < 0.5:
        return f"2001:db8:{rng.randrange(1, 2**16):x}::{rng.randrange(1, 2**16):x}"
    return ":".join(f"{rng.randrange(2**12, 2**16):x}" for _ in range(8))


def day(rng: Random) -> tuple[str, str, str]:
    return f"{rng.randrange(40, 100):02d}", f"{rng.randrange(1, 13):02d}", f"{rng.randrange(1, 29):02d}"


def spanish(rng: Random) -> str:
    lead = rng.choice(["", "X", "Y", "Z"])
    number = digits(rng, "#######" if lead else "########")
    place = int(str("XYZ".find(lead)) + number if lead else number) % 23
    return f"{lead}{number}{'TRWAGMYFPDXBNJZSQVHLCKE'[place]}"


def french(rng: Random) -> str:
    year, month, _ = day(rng)
    body = f"{rng.choice('12')}{year}{month}{rng.choice(['75', '13', '59'])}{digits(rng, '######')}"
    parts = [body[0], body[1:3], body[3:5], body[5:7], body[7:10], body[10:], f"{97 - int(body) % 97:02d}"]
    return rng.choice(["", " "]).join(parts)


def dutch(rng: Random) -> str:
    while True:
        number = digits(rng, "#########")
        if (sum((9 - place) * int(number[place]) for place in range(8)) - int(number[8])) % 11 == 0:
            return f"{rng.choice(['BSN', 'burgerservicenummer'])}: {NAMED}{number}"


def brazilian(rng: Random) -> str:
    body = digits(rng, "#########")
    for size in (9, 10):
        rest = sum((size + 1 - place) * int(body[place]) for place in range(size)) % 11
        body += str(0 if rest < 2 else 11 - rest)
    return f"{body[:3]}.{body[3:6]}.{body[6:9]}-{body[9:]}" if rng.random() < 0.6 else f"CPF: {NAMED}{body}"


def swedish(rng: Random) -> str:
    born = "".join(day(rng))
    return f"{born}-{with_luhn(born + digits(rng, '###'))[6:]}"


def polish(rng: Random) -> str:
    body = "".join(day(rng)) + digits(rng, "####")
    total = sum(int(digit) * (1, 3, 7, 9)[place % 4] for place, digit in enumerate(body))
    return f"PESEL: {NAMED}{body}{-total % 10}"


def finnish(rng: Random) -> str:
    year, month, date = day(rng)
    number = f"{rng.randrange(2, 900):03d}"
    check = "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(date + month + year + number) % 31]
    return f"{date}{month}{year}-{number}{check}"


def belgian(rng: Random) -> str:
    born, number = day(rng), f"{rng.randrange(1, 998):03d}"
    return f"{'.'.join(born)}-{number}.{97 - int(''.join(born) + number) % 97:02d}"


def german(rng: Random) -> str:
    body = rng.sample(string.digits, 9)
    body = [*body, body[0]] if body[0] != "0" else [*body[::-1], body[0]]
    product = 10
    for digit in body:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    name = rng.choice(["Steuer-ID", "IdNr.", "Steueridentifikationsnummer"])
    return f"{name}: {NAMED}{''.join(body)}{(11 - product) % 10}"


def american(rng: Random) -> str:
    return f"{rng.randrange(1, 600):03d}-{rng.randrange(1, 100):02d}-{rng.randrange(1, 10_000):04d}"


def indian(rng: Random) -> str:
    return f"Aadhaar: {NAMED}{rng.choice(AADHAAR)}"


IDS = (spanish, french, dutch, brazilian, swedish, polish, finnish, belgian, german, american, indian)


def national_id(rng: Random) -> str:
    """With the words that stand before it, where it needs any."""
    return rng.choice(IDS)(rng)


AADHAAR = (
    "658073021578", "568193036428", "821299722003", "5322 4538 3232", "8405 6224 1541", "2951 4547 5270",
    "920405608655", "890702931371", "7858 4719 5408", "813589525489", "3454-2124-7201", "398603954763",
)  # fmt: skip
"""Drawn once; their last digits by Verhoeff's rule as python-stdnum has it."""


def secret(rng: Random) -> str:
    kind = rng.randrange(16)
    made = (
        lambda: "AKIA" + drawn(rng, string.ascii_uppercase + string.digits, 16),
        lambda: "ghp_" + drawn(rng, ALNUM, 36),
        lambda: "github_pat_" + drawn(rng, ALNUM, 22) + "_" + drawn(rng, ALNUM, 59),
        lambda: "glpat-" + drawn(rng, BASE64URL, 20),
        lambda: f"xoxb-{digits(rng, '############')}-{digits(rng, '############')}-{drawn(rng, ALNUM, 24)}",
        lambda: "sk_live_" + drawn(rng, ALNUM, 24),
        lambda: "AIza" + drawn(rng, BASE64URL, 35),
        lambda: "sk-" + drawn(rng, ALNUM, 48),
        lambda: "sk-proj-" + drawn(rng, BASE64URL, 60),
        lambda: "npm_" + drawn(rng, ALNUM, 36),
        lambda: "hf_" + drawn(rng, string.ascii_letters, 34),
        lambda: ".".join("eyJ" * (part < 2) + drawn(rng, BASE64URL, 40 + 20 * part) for part in range(3)),
        lambda: "api_key=" + NAMED + drawn(rng, HEX, 32),
        lambda: "aws_secret_access_key = " + NAMED + base64.b64encode(rng.randbytes(30)).decode(),
        lambda: "password=" + NAMED + drawn(rng, ALNUM + "!#%^*_+", 12) + rng.choice(string.digits),
        lambda: "token: " + NAMED + drawn(rng, ALNUM, 40),
    )
    return made[kind]()


MAKERS = {
    "email": email, "phone": phone, "card": card, "iban": iban, "ip": ip, "national_id": national_id, "secret": secret,
}  # fmt: skip

AROUND = (
    "Please write to {} before Friday.", '{{"id": 17, "value": "{}", "ok": true}}', "Contact: {}",
    "17;Miller;{};2021-03-04", "value = '{}'  # as given", "(see {})", "<td>{}</td>",
    "2024-05-06 07:08:09 INFO user={} done", "- {}\n- none",
    "Der Kunde hat {} angegeben.", "Le client a donné {}, puis rien.", "客户的资料是 {} 。", "{}", "\t{}\t0.5",
)  # fmt: skip

LOOKALIKES: tuple[Callable[[Random], str], ...] = (
    lambda rng: f"{rng.randrange(1990, 2030)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d} 10:20:07",
    lambda rng: f"{rng.randrange(1, 29):02d}.{rng.randrange(1, 13):02d}.{rng.randrange(1990, 2030)}",
    lambda rng: f"version {rng.randrange(20)}.{rng.randrange(20)}.{rng.randrange(20)}.{rng.randrange(200)}",
    lambda rng: f"ISBN 978-3-{digits(rng, '##')}-{digits(rng, '######')}-{digits(rng, '#')}",
    lambda rng: "commit " + drawn(rng, HEX, 40),
    lambda rng: "sha256:" + drawn(rng, HEX, 64),
    lambda rng: "-".join(drawn(rng, HEX, size) for size in (8, 4, 4, 4, 12)),
    lambda rng: digits(rng, "1###############")[: rng.randrange(7, 15)],
    lambda rng: f"0.{digits(rng, '################')}",
    lambda rng: f"17{digits(rng, '########')} seconds, 17{digits(rng, '###########')} ms",
    lambda rng: " ".join(digits(rng, "####") for _ in range(7)),
    lambda rng: "password: str, token=None, api_key=os.environ['KEY'], secret=config.secret",
    lambda rng: "127.0.0.1:8080 and 0.0.0.0 and ::1, x[1::2], 1.2.3.4",
    lambda rng: "@decorator, a @ b, react@18.2.0, git@github.com:org/repo.git",
    lambda rng: "doi:10.1103/PhysRevE.71." + digits(rng, "0#####"),
)  # fmt: skip


def records(number: int, *, seed: int = SEED) -> list[tuple[bytes, Span | None]]:
    """Texts, each with the one span of private data in it, or with none."""
    rng = random.Random(seed)
    negatives = corpus.texts()
    made = []
    for place in range(number):
        if place % 10 == 9:
            told, value, kind = "", rng.choice(LOOKALIKES)(rng), None
        else:
            kind = TYPES[place % len(TYPES)]
            told, _, value = MAKERS[kind](rng).rpartition(NAMED)
        before, _, after = rng.choice(AROUND).replace("{{", "{").replace("}}", "}").partition("{}")
        text = negatives[rng.randrange(len(negatives))]
        lead = f"{text}\n{before}{told}".encode()
        span = Span(kind, len(lead), len(lead) + len(value.encode())) if kind else None
        made.append((lead + value.encode() + after.encode() + b"\n", span))
    return made


def measure(number: int) -> None:
    """Prints recall and precision by type, as prepare finds it: a detector sees what passes its prefilter."""
    made = records(number)
    texts = pa.array([text for text, _ in made], pa.large_binary())
    hopeful = act.candidates(texts, wanted=np.ones(number, bool), detectors=detect.detectors())
    planted: Counter[str] = Counter()
    recalled: Counter[str] = Counter()
    spans: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for place, (text, truth) in enumerate(made):
        found = detect.find(text, by=hopeful.get(place, []))
        spans.update(span.type for span in found)
        if truth is None:
            continue
        planted[truth.type] += 1
        over = [span for span in found if span.type == truth.type and span.start < truth.end and truth.start < span.end]
        right[truth.type] += len(over)
        recalled[truth.type] += any(span.start <= truth.start and truth.end <= span.end for span in over)
    print(f"{'type':12s} {'planted':>8s} {'found':>8s} {'recall':>8s} {'precision':>10s}")
    for name in TYPES:
        recall, precision = recalled[name] / planted[name], right[name] / spans[name]
        print(f"{name:12s} {planted[name]:8d} {spans[name]:8d} {recall:8.4f} {precision:10.4f}")


def speed(num_bytes: int) -> None:
    """Prints the megabytes a CPU second, with all types on and masked."""
    texts, total = [], 0
    for row in corpus.documents(num_bytes=num_bytes):
        texts.append(row["text"])
        total += len(str(row["text"]).encode())
    batches = [_batch(texts[place : place + BATCH_ROWS]) for place in range(0, len(texts), BATCH_ROWS)]
    detectors = detect.detectors()
    treatment = Treatment(actions=dict.fromkeys(TYPES, "mask"))
    began = time.process_time()
    treated = [act.act_on(batch, treatment=treatment, detectors=detectors) for batch in batches]
    seconds = time.process_time() - began
    counts = pa.Table.from_batches(treated)["private"].combine_chunks()
    found = {name: pc.sum(pc.struct_field(counts, name)).as_py() for name in TYPES}
    print(f"\n{total / 2**20:.0f} MiB of docstrings in {seconds:.2f} CPU seconds: {total / 1e6 / seconds:.1f} MB/s")
    print("found in them:", ", ".join(f"{name} {found[name]}" for name in TYPES))


def _batch(texts: list[object]) -> pa.RecordBatch:
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    empty = {name: pa.nulls(len(texts), pa.string()) for name in ("prompt", "chosen", "rejected", "unfit")}
    return pa.RecordBatch.from_pydict(
        {"text": pa.array(texts, pa.string()), "messages": pa.nulls(len(texts), messages), **empty}
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--mib", type=int, default=32)
    arguments = parser.parse_args()
    measure(arguments.records)
    speed(arguments.mib * 2**20)
