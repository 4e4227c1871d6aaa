"""The one thing that pyproject.toml cannot say: how the compiled core is built."""

import glob
import os

from Cython.Build import cythonize
from setuptools import Extension, setup

# TRACEFILL_LINETRACE=1 builds a slow core that coverage can look into (make coverage).
linetrace = os.environ.get("TRACEFILL_LINETRACE") == "1"

codec = Extension(
    "tracefill._codec",
    ["src/_codec.pyx"],
    depends=sorted(glob.glob("src/*.h")),
    include_dirs=["src"],
    extra_compile_args=["-O2", "-fno-strict-aliasing"],
    define_macros=[("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
    if linetrace
    else [],
)

setup(
    ext_modules=cythonize(
        [codec],
        build_dir=None if linetrace else "build/cython",
        compiler_directives={"linetrace": linetrace},
    )
)
