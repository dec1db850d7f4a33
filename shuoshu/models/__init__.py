"""Hugging Face model folders, and CPU kernels, which importing this package installs."""

from shuoshu.models import cpu_kernels

cpu_kernels.install()
