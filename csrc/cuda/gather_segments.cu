// Launch of the kernel that crops segments.
#include "gather_segments.cuh"
#include "launch.cuh"

namespace ecgfast::cuda {
namespace {

// Of a grid's dimension; a block loops over the rest.
unsigned blocks(int64_t n) { return static_cast<unsigned>(n < 65535 ? n : 65535); }

template <typename T>
cudaError_t gather(const GatherSegments& in, void* signal, cudaStream_t stream) {
  const dim3 grid(blocks(in.batch), blocks(in.leads), blocks(divide_up(in.length, kGatherChunk)));
  return launch(gather_segments_copy<T>, grid, dim3(kGatherThreads), 0, stream, in, static_cast<T*>(signal));
}

}  // namespace

cudaError_t gather_segments(const GatherSegments& in, SignalType type, void* signal, cudaStream_t stream) {
  switch (type) {
    case SignalType::int16:
      return gather<int16_t>(in, signal, stream);
    case SignalType::float32:
      return gather<float>(in, signal, stream);
    case SignalType::bfloat16:
      return gather<__nv_bfloat16>(in, signal, stream);
    case SignalType::float16:
      return gather<__half>(in, signal, stream);
    case SignalType::float64:
      return gather<double>(in, signal, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ecgfast::cuda
