"""The kernels' tests once more, built and run under AddressSanitizer in a process of their own."""

import subprocess
import sys

import pytest

from tests.cuda_on_cpu.harness import HERE, ROOT, UNDER_ASAN, asan_environment

SELECTIONS = [
    (
        "test_global_contrastive_kernel.py",
        "blocks or empty or positives or unaligned or 129 or tf32 and large and 33",
    ),
    (
        "test_global_contrastive_pairs_kernel.py",
        "empty or held or positives or unaligned or large and 129 and bfloat16",
    ),
    (
        "test_local_contrastive_kernel.py",
        "test_shapes or schedule or exclusion or unaligned or no_token or tf32 and 301",
    ),
    ("test_mask_kernels.py", "lead_mask or small or papers or more_tokens"),
    ("test_gather_segments_kernel.py", "equals or outside or none_of or chunks"),
    (
        "test_gumbel_quantize_kernel.py",
        "shapes or schedule or alone or unaligned or few_entries or tf32 and bfloat16",
    ),
    (
        "test_positional_conv_kernel.py",
        "bfloat16 and (shapes or unaligned) or asked or 3-7-15 or tf32 and 50",
    ),
    (
        "test_patch_embed_kernel.py",
        "schedule and bfloat16 or unaligned or one_channel or walk and float32 or tf32_where",
    ),
    ("test_emulator.py", "misuse or barrier or refused"),
]


@pytest.mark.skipif(UNDER_ASAN, reason="runs under ASan already")
@pytest.mark.parametrize(("file", "tests"), SELECTIONS)
def test_under_asan(file, tests):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file), "-k", tests]
    result = subprocess.run(
        command, cwd=ROOT, env=asan_environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert "AddressSanitizer" not in result.stderr, result.stderr
