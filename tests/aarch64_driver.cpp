// Runs the portable kernels and compares them with plain loops; prints the name of each that agrees.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/philox_vector.h"

using namespace ecgfast;

namespace ecgfast::baseline {
ECGFAST_KERNELS(ECGFAST_DECLARE)
}

static void expect(bool agrees, const char* what, double got, double want) {
  if (agrees) return;
  std::printf("%s: got %.9g, expected %.9g\n", what, got, want);
  std::exit(1);
}

static void check_philox() {
  const Stream stream = make_stream(123456789012345, 7, int64_t{1} << 40, Purpose::gumbel);
  constexpr int64_t first = 0xFFFFFFF0, blocks = 21;
  std::vector<uint32_t> words(4 * blocks + kPhiloxSlack);
  philox_fill(stream, static_cast<uint32_t>(first), blocks, words.data());
  for (int64_t i = 0; i < 4 * blocks; ++i) {
    const uint32_t want = block(stream, static_cast<uint32_t>(first + i / 4)).v[i % 4];
    expect(words[i] == want, "philox", words[i], want);
  }
  std::puts("philox");
}

static double gelu(double x) { return 0.5 * x * std::erfc(-x * std::sqrt(0.5)); }
static double gelu_slope(double x) {
  return 0.5 * std::erfc(-x * std::sqrt(0.5)) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0));
}

// Errors up to `ulps` of the result, or `absolute` where that is more.
static void check_function(Activation function, const char* name, double (*exact)(double), double ulps,
                           double absolute) {
  constexpr int n = 200003;  // ends inside a vector
  std::vector<float> x(n), y(n);
  for (int i = 0; i < n; ++i) x[i] = -12.0f + 24.0f * i / n;
  baseline::activation({function, false, x.data(), y.data()}, 0, n);
  for (int i = 0; i < n; ++i) {
    const double want = exact(x[i]);
    const float size = std::fabs(static_cast<float>(want));
    const double ulp = std::nextafter(size, INFINITY) - size;
    expect(std::fabs(y[i] - want) <= std::fmax(ulps * ulp, absolute), name, y[i], want);
  }
  std::puts(name);
}

struct Local {
  int64_t M, D, K;
  std::vector<float> p, t, grad_loss;
  int64_t id = 77;

  Local(int64_t M_, int64_t D_, int64_t K_) : M(M_), D(D_), K(K_), p(M * D), t(M * D), grad_loss(M) {
    for (std::vector<float>* v : {&p, &t, &grad_loss})
      for (float& value : *v) value = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 0.5f;
  }

  // weight[i][j]: d loss_i / d s_ij, from the definition, draw by draw.
  std::vector<double> weights(std::vector<double>& loss, double temperature) const {
    const Stream stream = make_stream(3, 4, id, Purpose::negatives);
    std::vector<double> weight(M * M);
    for (int64_t i = 0; i < M; ++i) {
      double total = std::exp(cosine(i, i) / temperature);
      double* row = &weight[i * M];
      row[i] = total;
      for (int64_t k = 0; k < K; ++k) {
        int64_t j = bounded(element(stream, static_cast<uint32_t>(i * K + k)), static_cast<uint32_t>(M - 1));
        j += j >= i;
        const double e = std::exp(cosine(i, j) / temperature);
        row[j] += e;
        total += e;
      }
      loss[i] = std::log(total) - cosine(i, i) / temperature;
      for (int64_t j = 0; j < M; ++j) row[j] = row[j] / total - (j == i);
    }
    return weight;
  }
  double norm(const float* x) const {
    double sum = 0;
    for (int64_t d = 0; d < D; ++d) sum += static_cast<double>(x[d]) * x[d];
    return std::sqrt(sum);
  }
  double cosine(int64_t i, int64_t j) const {
    double sum = 0;
    for (int64_t d = 0; d < D; ++d) sum += static_cast<double>(p[i * D + d]) * t[j * D + d];
    return sum / norm(&p[i * D]) / norm(&t[j * D]);
  }
};

static void check_local(int64_t M, int64_t D, int64_t K, bool save) {
  const Local x(M, D, K);
  std::vector<float> loss(M), lse(M), inv_norms(2 * M), saved(M * M), grad_p(M * D), grad_t(M * D);
  std::vector<uint8_t> correct(M);
  LocalArgs a{};
  a.dtype = DType::f32;
  a.B = 1, a.M = M, a.D = D, a.K = K;
  a.inv_temperature = 10;
  a.predictions = x.p.data(), a.targets = x.t.data();
  a.seed = 3, a.step = 4, a.sample_ids = &x.id;
  a.loss = loss.data(), a.correct = reinterpret_cast<bool*>(correct.data());
  a.lse = lse.data(), a.inv_norms = inv_norms.data(), a.weights = save ? saved.data() : nullptr;
  a.grad_loss = x.grad_loss.data(), a.grad_predictions = grad_p.data(), a.grad_targets = grad_t.data();
  for (const bool backward : {false, true}) {
    void* scratch = std::aligned_alloc(64, (baseline::local_contrastive_scratch(a, backward) + 63) / 64 * 64);
    (backward ? baseline::local_contrastive_backward : baseline::local_contrastive)(a, 0, 1, scratch);
    std::free(scratch);
  }
  std::vector<double> want(M);
  const std::vector<double> weight = x.weights(want, 0.1);
  for (int64_t i = 0; i < M; ++i)
    expect(std::fabs(loss[i] - want[i]) < 1e-5, "local_contrastive loss", loss[i], want[i]);
  for (int64_t i = 0; i < M; ++i)
    for (int64_t d = 0; d < D; ++d) {
      double of_p = 0, of_t = 0;
      const double p = x.p[i * D + d] / x.norm(&x.p[i * D]), t = x.t[i * D + d] / x.norm(&x.t[i * D]);
      for (int64_t j = 0; j < M; ++j) {
        const double from_t = x.t[j * D + d] / x.norm(&x.t[j * D]) - x.cosine(i, j) * p;
        const double from_p = x.p[j * D + d] / x.norm(&x.p[j * D]) - x.cosine(j, i) * t;
        of_p += 10 * x.grad_loss[i] * weight[i * M + j] * from_t / x.norm(&x.p[i * D]);
        of_t += 10 * x.grad_loss[j] * weight[j * M + i] * from_p / x.norm(&x.t[i * D]);
      }
      expect(std::fabs(grad_p[i * D + d] - of_p) < 1e-5, "local_contrastive grad", grad_p[i * D + d], of_p);
      expect(std::fabs(grad_t[i * D + d] - of_t) < 1e-5, "local_contrastive grad", grad_t[i * D + d], of_t);
    }
}

int main() {
  check_philox();
  check_function(Activation::exp, "exp", std::exp, 1.2, 0);
  check_function(Activation::gelu, "gelu", gelu, 1.8, 0);
  check_function(Activation::gelu_grad, "gelu_grad", gelu_slope, 5, 2e-7);
  check_local(13, 37, 20, true);
  check_local(13, 37, 20, false);
  check_local(19, 32, 9, true);
  std::puts("local_contrastive");
}
