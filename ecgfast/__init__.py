"""ecgfast: fused kernels, encoders and training for self-supervised learning on electrocardiograms."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ecgfast")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

from ecgfast import ops
from ecgfast._build import config, cpu_isa, set_cpu_isa, show_config, usable_cpu_isas
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS

__all__ = [
    "STANDARD_LEADS",
    "EcgfastError",
    "__version__",
    "config",
    "cpu_isa",
    "ops",
    "set_cpu_isa",
    "show_config",
    "usable_cpu_isas",
]
