// Numbers with a tangent: forward-mode differentiation of what is computed once a channel.

#ifndef DARTS_JAX_KERNELS_DUAL_H_
#define DARTS_JAX_KERNELS_DUAL_H_

#include <cmath>

namespace planes {

template <typename T>
struct Dual {
  T value = 0, tangent = 0;
};

template <typename T>
Dual<T> operator+(Dual<T> a, Dual<T> b) {
  return {a.value + b.value, a.tangent + b.tangent};
}

template <typename T>
Dual<T> operator-(Dual<T> a, Dual<T> b) {
  return {a.value - b.value, a.tangent - b.tangent};
}

template <typename T>
Dual<T> operator-(Dual<T> a) {
  return {-a.value, -a.tangent};
}

template <typename T>
Dual<T> operator*(Dual<T> a, Dual<T> b) {
  return {a.value * b.value, a.tangent * b.value + a.value * b.tangent};
}

template <typename T>
Dual<T> operator/(Dual<T> a, T b) {
  return {a.value / b, a.tangent / b};
}

// 1 / sqrt(x + epsilon), of a number and of a number with a tangent.
template <typename T>
T InverseRoot(T x, double epsilon) {
  return 1 / std::sqrt(x + T(epsilon));
}

template <typename T>
Dual<T> InverseRoot(Dual<T> x, double epsilon) {
  const T root = InverseRoot(x.value, epsilon);
  return {root, T(-0.5) * root * root * root * x.tangent};
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_DUAL_H_
