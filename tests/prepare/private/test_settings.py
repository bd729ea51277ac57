"""What may be set about private data, and where the key of the pseudonyms comes from."""

import pytest
from pydantic import ValidationError

from tessera.errors import ConfigError
from tessera.prepare.private.settings import COUNTRIES, KEY_VARIABLE, MIN_KEY_BYTES, TYPES, PrivateSettings


def test_nothing_is_looked_for_by_default() -> None:
    settings = PrivateSettings()

    assert not settings.looks
    assert not settings.needs_key
    assert settings.read_key() is None


def test_actions_are_in_the_order_of_types() -> None:
    settings = PrivateSettings(secret="drop", email="mask", iban="pseudonymise")

    assert settings.looks
    assert settings.needs_key
    assert list(settings.actions.items()) == [("email", "mask"), ("iban", "pseudonymise"), ("secret", "drop")]
    assert list(PrivateSettings(**dict.fromkeys(TYPES, "count")).actions) == list(TYPES)


def test_the_order_of_countries_says_nothing() -> None:
    assert PrivateSettings(countries=("se", "de", "se")) == PrivateSettings(countries=("de", "se"))
    assert PrivateSettings().countries == COUNTRIES


@pytest.mark.parametrize(
    "values", [{"countries": ("de", "atlantis")}, {"countries": ()}, {"email": "hide"}, {"name": "mask"}]
)
def test_what_is_not_known_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PrivateSettings.model_validate(values)


def test_the_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "k" * MIN_KEY_BYTES)

    settings = PrivateSettings(email="pseudonymise")

    assert settings.read_key() == b"k" * MIN_KEY_BYTES
    assert "kkkk" not in repr(settings) + str(settings.identity()) + settings.model_dump_json()
    assert PrivateSettings(email="mask").read_key() is None


@pytest.mark.parametrize("value", [None, "", "tooshort!"])
def test_a_missing_or_short_key_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(KEY_VARIABLE, value)

    with pytest.raises(ConfigError) as error:
        PrivateSettings(email="pseudonymise").read_key()

    assert KEY_VARIABLE in str(error.value)
    assert "openssl" in str(error.value)
    assert "\n" not in str(error.value)
    assert not value or value not in str(error.value)
