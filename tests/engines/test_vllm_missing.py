from importlib.util import find_spec

import pytest

from evomerge.config import PoolConfig, VllmConfig
from evomerge.engines.build import build_engine
from evomerge.errors import MissingExtraError
from evomerge.merging.pool import ModelPool


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_where_there_is_no_vllm_the_extra_is_named(pool: ModelPool) -> None:
    source = PoolConfig(base=pool.folder("base"), experts={"rev": pool.folder("rev")})
    with pytest.raises(MissingExtraError, match=r"pip install 'evomerge\[vllm\]'"):
        build_engine(pool, source, VllmConfig(kind="vllm"))
