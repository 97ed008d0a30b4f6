"""Settings for all tests: hypothesis has no deadline and no speed check, so that no test depends on the clock."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("client_suite")
settings.register_profile("justright", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("justright")


@pytest.fixture(scope="session", autouse=True)
def no_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Clients read no certificates, which costs 50 ms a client: servers of tests speak no TLS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_CERT_FILE", raising=False)
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
        yield


@pytest.fixture(scope="session")
def lm_eval_index() -> Iterator[None]:
    """Read lm-eval's own index of tasks (thousands of YAML files, about 10 s) once per session."""
    import lm_eval.tasks
    from lm_eval.tasks._index import TaskIndex

    own = Path(lm_eval.tasks.__file__).parent
    build = TaskIndex.build
    kept: dict[str, Any] = {}

    def once(paths: list[Path]) -> dict[str, Any]:
        if own not in paths:
            return build(paths)
        assert paths[0] == own, "later folders override lm-eval's own tasks"
        if not kept:
            kept.update(build([own]))
        return kept | build(paths[1:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(once))
        yield
