"""What says which offers a pool has."""

from __future__ import annotations

from typing import Any

from remuda.cli.table_file import TableFile
from remuda.offers import offer_row, offers_of


class OffersFile(TableFile):
    """One offer, a list of them, or a table with the list `offers`."""

    key = "offers"

    def rows(self, found: Any) -> list[dict[str, Any]]:
        """Return the offers, each checked."""
        return [offer_row(offer) for offer in offers_of(found)]
