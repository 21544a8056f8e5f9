"""The catalogue as a plugin: signed lists of packages over HTTP, verified as The Update Framework prescribes.

The hooks are cheap: TUF, cryptography and HTTP are imported when metadata must be fetched, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobagent.plugin import Catalogue, Context, Verifier, hookimpl
from jobagent_catalogue.client import SignedCatalogue
from jobagent_catalogue.settings import CatalogueSettings
from jobagent_catalogue.verifier import DigestVerifier


@hookimpl
def jobagent_settings() -> Mapping[str, type]:
    """Declare `[catalogue]`."""
    return {"catalogue": CatalogueSettings}


@hookimpl
def jobagent_catalogues(context: Context) -> Sequence[Catalogue] | None:
    """Provide the catalogue where one is configured."""
    settings = context.config.get(CatalogueSettings)
    if not settings.urls:
        return None
    return [SignedCatalogue(settings, context.state / "catalogue", context.events)]


@hookimpl
def jobagent_verifiers(context: Context) -> Sequence[Verifier]:
    """Provide the check of length and digest."""
    return [DigestVerifier()]
