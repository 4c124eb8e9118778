"""XLA's own convolution for each of the three roles, in the one layout that it has fast kernels for.

On a CPU XLA gives a float32 convolution to its library of kernels if examples come first, channels last and the
kernel is `[window_height, window_width, channels, features]`; any other layout goes through a loop, 5 to 100 times
slower. The gradients that JAX derives have other layouts, which XLA mends only where nothing is around them: not in a
loop over tasks. Here they are brought into that layout first. The barriers keep XLA from taking the transpositions
into the convolution again.
"""

import jax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_keep = jax.lax.optimization_barrier


def canonical_output(inputs, kernel, strides, padding, dilation, precision):
    """Convolve `inputs [examples, height, width, channels]` with a kernel."""
    return jax.lax.conv_general_dilated(
        inputs, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=DIMENSIONS, precision=precision
    )


def canonical_kernel(inputs, output, window, strides, padding, dilation, precision):
    """Give the kernel's gradient: channels take the place of examples, and examples that of channels.

    `k[a, b, c, f] = sum_{n, i, j} x[n, s i + d a, s j + d b, c] y[n, i, j, f]` is a convolution with the output as its
    kernel, whose strides are the dilation of the other, and whose dilation is the strides.
    """
    sizes = zip(inputs.shape[1:3], output.shape[1:3], window, strides, padding, dilation, strict=True)
    # What of the inputs no window reached, where strides do not divide, is cut off at the end.
    reached = [
        (low, (positions - 1) * stride + (places - 1) * spacing + 1 - size - low)
        for size, positions, places, stride, (low, _), spacing in sizes
    ]
    images, filters = _keep((inputs.transpose(3, 1, 2, 0), output.transpose(1, 2, 0, 3)))
    return _keep(canonical_output(images, filters, dilation, reached, strides, precision)).transpose(1, 2, 0, 3)
