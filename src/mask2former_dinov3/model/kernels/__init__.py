"""Fast versions of single operations, by device: convolution, deformable attention, weighted sums of rows.

In come tensors of feature maps, positions and weights.
Out come tensors with gradients; nothing here depends on the network that uses them.

Read in this order:

    deformable_attention   the operation, its plain version, and the choice by device
    weighted_bags          weighted sums of table rows, and their transpose
    deformable_cpu         deformable attention by weighted sums of rows
    deformable_triton      deformable attention by Triton kernels for CUDA
    convolution            a convolution with a fast gradient on CPUs
    memory_layout          feature maps as rows of pixels and back
"""
