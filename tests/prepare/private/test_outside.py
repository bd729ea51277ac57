"""Cases that a check from outside found: what was missed, and what was taken for private and is not."""

import time

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tessera.prepare.private import detect

DETECTORS = detect.detectors()

NAMES = [
    "SECRET_KEY=", "secretKey: ", "clientSecretKey=", "TOKENS=", "API_KEYS=", "PASSWORD_VALUE=", "SECRET_ID=",
    "TOKEN_STRING: ", "CREDENTIAL_KEY=", "my Password Is ", "password    = ", "password\t\t: ", '{\\"password\\":\\"',
    "| password | ", "password\t", "Passwort ist ", "le mot de passe est ", "la contraseña es ", "pw: ", "password1=",
    "password_prod=", "passwordConfirm=", "hmac_key=", "SECRET_KEY_BASE=", "dbPass=", "db_pass=", "пароль: ", "密码是",
    "密码\N{FULLWIDTH COLON}", "curl -u bob:", "mysql -u root -p", "sshpass -p '", "IDENTIFIED BY '", "**Password:** ",
    "BEARER ", "Authorization: bearer\t", "new password is now ",
]  # fmt: skip
CASES = [("as it is", str), ("swapped", str.swapcase), ("upper", str.upper)]

ISSUED = [
    "xoxc-298415377602-077642656515-055613044516-c2bd818319478da6bd0c621de49f145fda9988c79fc35526f7eaed46725a2a7b",
    "xoxd-qZKm4bV3AyAVHnyrvWdFrK9xiRGHOY32nfr5pyzPCB9t2039bicBTW5ZE9LF%2Baez7770H2DCp",
    "xoxe.xoxp-1-vqPVStNKiaEdFrRgSnRFsTHsDDDXh5Jmtf7EbsDe0G9Cryn687neLfjVHq8x",
    "hvs.QDH9eN6JUJqGb8mUtDZldrphAxHUtwudSF4_BSX6BPdnbiZShDW0WCdGcH3E",
    "https://discord.com/api/webhooks/230767694291244498/RjykwMT7T2i-OwJGcvIEcBgZ5zKmzEhqgkjRrayIbPdBPPd-ZRwh1flQ_ZG7",
    "MTAxY8u5YDjUQBNqfBvU7Q7XTO.aQ9QDc.F6fssIXIiHTremz2mUKEsjMRUFSZQhRP9VFESt",
    "9f67e48eb7c64328c0490c257a632b96-us12",
    "ATATT3xFfGF0" + "aQjk5WY1_dn77318wi4Y-rbDzZfLQX6" * 6,
    "NRAK-24L7JAIX57PX7VYQB9MAQDLT8RU",
    "PMAK-1caeae0ffac7cb2c8a2788fb-f742b65b754e51acbd3d48c3bb9e28c9e3",
    "sbp_e6a63c59620e66869002b6d08b5ab9315bd0e3a3",
    "pul-335ce1113d4db2b5b52a0f94833734f83ae7518b",
    "rubygems_23a60e4e81e11e3f79aa766907508db2823ccd71ba82f4de",
    "dp.pt.j6ai6tjGVwgWkDRzfAvP6QTz4v5cLpmYOSaciGMoKBS",
    "AGE-SECRET-KEY-1TX0ASKXCGS6Y4U3JHNCRLLHPR8CUNFAZ57GQ3FVZET30JP669CLH352LRK",
    "1//0gz8xBfZuXTptFyfePpX6N1NF2XV54wca-7E56w8ZniqT3Ul4ffqkOkgWrdioy",
    "dapie4b9447a3d54ec6390bf61189639e35a-2",
    "whsec_Dk8qaWvIfT90u9PPOsIaoK5aRMSeLZ9nPQFoCtwzJWA=",
    "glpat-lHUvTCQCyEZDz_TddJ8H",
    "glpat-lHUvTCQCyEZDz_TddJ8HlHUvTCQ.01.0a1b2c3d4",
    "sW68Q~bH3pw4vKYFRGdlAHsiiYMjiibjUjso_J5w",
]  # fmt: skip

SECRETS = [
    ("key: ", "65YBF7e2m1vYb2PQDR+aXIflWGxBdhdYYq7liUlQHq5GN6eWOcOq3TUjFI593kUnyLNIqDGPPPtXbwCa0X4xkw=="),
    ("the key id and then ", "tmzIekEg2XDGGuZ+ymtRRt7iCl3b8H6FA3go5RMF"),
    ("password: '", "your1stpass"), ("password: '", "Change.me1"), ("password: '", "sample!2x"),
    ("password='", "back\\slash1"), ("https://bob:", "Change.me1"),
]  # fmt: skip

NO_SECRETS = [
    "pwd = '/home/user1/projects'", "PWD=/home/user1/projects2", "pwd: /var/www/html2", "bypass = 1234567",
    "compass: 180.5N1", "trespass = 12345678", "Spw: 1234567", "pass: 2023-10-10", "password: 06/12/2023",
    "pass: 0.98765",
    "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8", "sha256-P3m7e0NbBTIWUdrv03TNxoHcBvqmXjdOODN7iMoEbeo=",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0jT8v9w9VqM1m4kY1R8yA0m0v5f6Xz8a2b3c4d5e6f",
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7vbqajDhA9d8J", "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "AKIAIOSFODNN7EXAMPLE", "sk-your-api-key-here-1234", "sk-learn-contrib-imbalanced-learn-0-12",
    "password=$PASSWORD1", "password: %PASSWORD1%", "password=your_password_1", "api_key='YOUR_API_KEY_1'",
    "password: changeme123", "secret=my-secret-12", "if password == password2:", "while token == other_token1:",
    "| password | varchar(255) |", "| password | 12 |", "| token | gpt2-medium |", "bypass\tab12cd34",
    "Passwortes ab12cd", "docker run -u 1000:123456", "mkdir -p build123456", "curl -u bob:$PASSWORD1 x",
    "commit key da39a3ee5e6b4b0d3255bfef95601890afd80709",
]  # fmt: skip

FOUND = [
    ("ip", before, value, after)
    for value in ("192.168.1.1", "8.8.8.8")
    for before, after in [
        ("server ", ""), ("DNS server: ", "."), ("nameserver ", ""), ("ip >= ", ""), ("host-", " is up"),
        ("http://", "/admin"), ("ssh root@", ""), ("connect to ", ":8080 now"), ("subnet ", "/24"), ("ping ", "."),
        ("Login from ", " at noon"), ("IP=", ""), ('"ip": "', '"'), ("client=", ";"), ("src=", ""), ("clientIp=", ""),
        ("", ' - bob [10/Oct/2000] "GET /'),
    ]
] + [
    ("ip", "receiver ", "203.0.113.77", ""), ("ip", "IPsec ", "203.0.113.77", ""),
    ("ip", "src:", "2001:db8::1", ""), ("ip", "IPv6:", "2001:db8::1", ""), ("ip", "mail[", "2001:db8::1", "]"),
    ("ip", "", "64:ff9b::192.0.2.33", ""),
    ("email", "//", "jane@corp.example", " wrote it"), ("email", "x //", "jane@corp.example", ""),
]  # fmt: skip

NOT_FOUND = [
    "version 10.12.14.16", "ver. 10.12.14.16", "v. 10.12.14.16", "Rev 10.12.14.16", "APP_VERSION=10.12.14.16",
    "appVersion: 10.12.14.16", "pip==10.12.14.16", "pkg~=10.12.14.16", "pkg != 10.12.14.16", "pkg>=10.12.14.16",
    "libfoo-10.12.14.16", "Article 10.1.12.1", "Table 10.1.2.12", "Figure 11.2.3.14", "§ 12.10.14.16",
    "<Version>10.12.14.16</Version>", "1.2.3.4", "version 1.2.3.4", "1.2.3.4 - Introduction", "upgrade from 1.2.3.4",
    "(1.2.3.4)", "pip 1.2.3.4", "x[1000::2]", "y[0][2024::50]", "crate::abc1::def2",
    "A@B.transpose", "x@y.shape", "foo@bar.baz()", "libfoo@plt.got", "icon@2x.png", "icon@2x.svg.gz",
    "https://jane@corp.example/x",
]  # fmt: skip


def found(text: str) -> list[tuple[str, str]]:
    data = text.encode()
    return [(span.type, data[span.start : span.end].decode()) for span in detect.find(data, by=DETECTORS)]


def found_behind_prefilter(text: str) -> list[tuple[str, str]]:
    """As `act` asks: of the detectors whose `may` matches."""
    column = pa.array([text.encode()], pa.binary())
    some = [one for one in DETECTORS if pc.match_substring_regex(column, one.may)[0].as_py()]
    data = text.encode()
    return [(span.type, data[span.start : span.end].decode()) for span in detect.find(data, by=some)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_a_named_secret_is_found_in_any_case_and_by_the_prefilter(name: str, case: object) -> None:
    command = name.split()[0] in ("curl", "mysql", "sshpass")
    changed = name if command or not name.isascii() else case(name)  # type: ignore[operator]
    end = '\\"}' if '\\"' in name else "'" if name.endswith("'") else " |" if "|" in name else "\n"

    assert found_behind_prefilter(f"- {changed}Ab3dE6fgH9{end}") == [("secret", "Ab3dE6fgH9")]


@pytest.mark.parametrize("value", ISSUED)
@pytest.mark.parametrize("around", ["see {}.", "({}). Next", "export X='{}'", "`{}`", "a {}\n"])
def test_what_an_issuer_writes_is_found_whole_and_no_full_stop_with_it(value: str, around: str) -> None:
    assert found_behind_prefilter(around.replace("{}", value)) == [("secret", value)]


@pytest.mark.parametrize(("before", "value"), SECRETS)
def test_secrets_that_look_like_something_else(before: str, value: str) -> None:
    end = "@host.example/" if "://" in before else "'" if before.endswith("'") else ""

    assert found_behind_prefilter(f"{before}{value}{end}") == [("secret", value)]


@pytest.mark.parametrize("text", NO_SECRETS + NOT_FOUND)
def test_look_alikes_are_left_alone(text: str) -> None:
    assert found(text) == []
    assert found(f"Some notes: {text} and that was it.") == []


@pytest.mark.parametrize(("kind", "before", "value", "after"), FOUND)
def test_addresses_are_found_by_what_stands_beside_them(kind: str, before: str, value: str, after: str) -> None:
    assert found_behind_prefilter(f"{before}{value}{after}") == [(kind, value)]


@pytest.mark.parametrize(
    "unit",
    ["eyJ", "-eyJ", ".eyJ", "eyJaaaaaaaa.", "pw", "pw ", "password ", "password \t", "password\\", "pass_key_",
     "mysql ", "mysql -", "curl -u a", " -u a", "identified by ", "A+b/9", "ip ", "ip-", "8.8.8.8", "src:", "MTA",
     "password='\\", "1//0", "_secret_key", "d::", "Q~1Q~"],
)  # fmt: skip
def test_time_grows_with_the_text_alone(unit: str) -> None:
    """A text of what each pattern begins with; a quadratic one takes minutes."""
    data = (unit * (200_000 // len(unit))).encode()
    start = time.process_time()

    detect.find(memoryview(data), by=DETECTORS)

    assert time.process_time() - start < 5
