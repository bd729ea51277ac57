"""What is looked for in the rows' texts, and what happens to what is found."""

import os
from typing import Literal

from pydantic import Field, field_validator

from tessera.config import Section
from tessera.errors import ConfigError

TYPES = ("email", "phone", "card", "iban", "ip", "national_id", "secret")
"""Of private data, in the order that decides which one a dropped row is counted under."""

COUNTRIES = (
    "au", "be", "br", "ca", "ch", "cn", "de", "dk", "es", "fi", "fr", "gb", "in", "it", "kr", "nl", "no", "pl", "pt",
    "se", "us",
)  # fmt: skip
"""Whose national ids are known."""

KEY_VARIABLE = "TESSERA_PSEUDONYM_KEY"
MIN_KEY_BYTES = 16

Action = Literal["off", "count", "mask", "pseudonymise", "drop"]


class PrivateSettings(Section):
    """What is done about private data of each type: not looked for, counted only, replaced by `<EMAIL>`, replaced by
    `<EMAIL:keyed hash>` so that equal values stay equal, or the row dropped."""

    email: Action = "off"
    """E-mail addresses."""
    phone: Action = "off"
    """Phone numbers, international ones and the national forms that can hardly be anything else."""
    card: Action = "off"
    """Payment card numbers: of an issuer's range, and with a right check digit."""
    iban: Action = "off"
    """Bank accounts (IBAN) of their country's length, with right check digits."""
    ip: Action = "off"
    """IPv4 and IPv6 addresses, except loopback, unspecified and network masks, which point at nobody."""
    national_id: Action = "off"
    """Identity, tax and social security numbers of `countries`."""
    secret: Action = "off"
    """Keys, tokens, passwords and private keys: by their known beginnings, their names, or their randomness."""
    countries: tuple[str, ...] = Field(COUNTRIES, min_length=1)
    """Whose national ids are looked for, by ISO 3166 code in lower case."""

    @field_validator("countries")
    @classmethod
    def _known(cls, countries: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(countries) - set(COUNTRIES))
        if unknown:
            raise ValueError(f"no national ids of {', '.join(unknown)} are known; those of {', '.join(COUNTRIES)} are")
        return tuple(sorted(set(countries)))

    @property
    def actions(self) -> dict[str, str]:
        """Type -> action, of the types that are looked for, in the order of TYPES."""
        return {name: getattr(self, name) for name in TYPES if getattr(self, name) != "off"}

    @property
    def looks(self) -> bool:
        """Whether anything is looked for."""
        return bool(self.actions)

    @property
    def needs_key(self) -> bool:
        """Whether any type is pseudonymised."""
        return "pseudonymise" in self.actions.values()

    def read_key(self) -> bytes | None:
        """The key of the pseudonyms, from the environment; None where none is needed.

        Raises:
            ConfigError: it is needed, and absent or so short that pseudonyms could be guessed back.
        """
        if not self.needs_key:
            return None
        key = os.environ.get(KEY_VARIABLE, "").encode()
        if len(key) < MIN_KEY_BYTES:
            raise ConfigError(
                f"prepare.private pseudonymises, and the environment's {KEY_VARIABLE} has {len(key)} bytes, wanted "
                f"{MIN_KEY_BYTES} or more; export one, such as the output of: openssl rand -hex 32"
            )
        return key
