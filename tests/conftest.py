"Flags of tests; `make test` leaves all three out, `make test-all` adds `slow`."
import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: needs more than a minute")
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")
    config.addinivalue_line("markers", "weights: needs weights that are not shipped")
    for theirs in ("`torch.jit.script` is deprecated", "The 'mode.chained_assignment' option is deprecated"):      # said when other packages are imported
        config.addinivalue_line("filterwarnings", f"ignore:{theirs}")


def pytest_collection_modifyitems(items):
    flagged = [item for item in items if item.get_closest_marker("gpu")]
    if not flagged: return
    import torch
    if torch.cuda.is_available(): return
    for item in flagged: item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))
