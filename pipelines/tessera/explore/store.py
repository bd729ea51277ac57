"""The one MLflow run that keeps the page as its artifact."""

import hashlib
from pathlib import Path
from typing import Any

from tessera import tracking
from tessera.explore.runs import KIND_TAG, MAP

SHA256_TAG = "tessera.map_sha256"


def log_map(client: Any, *, experiment_id: str, page: Path) -> str:
    """Keeps the page with the experiment's one run of kind `map`, made if it is absent; the run's id.

    A page that the run has already is not sent again.
    """
    sha256 = hashlib.sha256(page.read_bytes()).hexdigest()
    found = client.search_runs(
        [experiment_id], filter_string=f"tags.`{KIND_TAG}` = '{MAP}'", order_by=["start_time ASC"], max_results=1
    )
    run = found[0] if found else client.create_run(experiment_id, run_name=MAP, tags={KIND_TAG: MAP})
    run_id = str(run.info.run_id)
    if run.data.tags.get(SHA256_TAG) != sha256:
        with tracking.patient():
            client.log_artifact(run_id, str(page))
        client.set_tag(run_id, SHA256_TAG, sha256)
        client.set_terminated(run_id, status="FINISHED")
    return run_id
