# torch_stable: PyTorch's stable ABI as an interface target. Only torch's headers are used, torch is never imported; the
# binaries then load in every torch from ECGFAST_TORCH_TARGET on.
if(NOT ECGFAST_TORCH_ROOT)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import importlib.util, os; s = importlib.util.find_spec('torch'); print(os.path.dirname(s.origin) if s else '')"
    OUTPUT_VARIABLE ECGFAST_TORCH_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
set(ECGFAST_TORCH_INCLUDE "${ECGFAST_TORCH_ROOT}/include")
if(NOT EXISTS "${ECGFAST_TORCH_INCLUDE}/torch/csrc/stable/library.h")
  message(FATAL_ERROR "no torch headers in '${ECGFAST_TORCH_ROOT}': set ECGFAST_TORCH_ROOT to site-packages/torch (torch >= ${ECGFAST_TORCH_TARGET})")
endif()
file(STRINGS "${ECGFAST_TORCH_INCLUDE}/torch/headeronly/version.h" version_lines REGEX "define TORCH_VERSION_(MAJOR|MINOR)")
string(REGEX MATCH "MAJOR ([0-9]+)" unused "${version_lines}")
set(ECGFAST_TORCH_HEADERS "${CMAKE_MATCH_1}")
string(REGEX MATCH "MINOR ([0-9]+)" unused "${version_lines}")
string(APPEND ECGFAST_TORCH_HEADERS ".${CMAKE_MATCH_1}")

string(REPLACE "." ";" target_parts "${ECGFAST_TORCH_TARGET}")
list(GET target_parts 0 target_major)
list(GET target_parts 1 target_minor)
math(EXPR target_version "(${target_major} << 56) | (${target_minor} << 48)" OUTPUT_FORMAT HEXADECIMAL)

add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE "${ECGFAST_TORCH_INCLUDE}")
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=${target_version})
# An empty libtorch.so of the right SONAME: the binaries name libtorch.so as needed and link nothing of it.
file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/stub/stub.c" CONTENT "int ecgfast_libtorch_stub;\n")
add_library(torch_stub SHARED "${CMAKE_BINARY_DIR}/stub/stub.c")
set_target_properties(torch_stub PROPERTIES OUTPUT_NAME torch LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/stub")
target_link_libraries(torch_stable INTERFACE -Wl,--no-as-needed torch_stub -Wl,--as-needed)
# Nothing is exported: the ops register themselves in static initialisers.
file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/stub/hide.map" CONTENT "{ local: *; };\n")
target_link_options(torch_stable INTERFACE -Wl,-z,now "-Wl,--version-script=${CMAKE_BINARY_DIR}/stub/hide.map")
