"""The narrow waist: everything in front becomes a *clean graph*, everything behind reads one.

The container is ``onnx_ir.Model``. A clean graph is what ``repedge.passes.simplify`` returns and
what every target may rely on:

- opset 20 of the default domain, float32, no control flow, no functions;
- one input, static shape [1, C, H, W]; every value has a static shape and a dtype;
- weights, scales, shapes, axes, clip bounds and the like are initializers (no Constant nodes);
- no Identity, Dropout, Cast-to-same, dead nodes or unused initializers;
- GELU is one Gelu node, hard-swish one HardSwish node, a mean over H and W one GlobalAveragePool,
  ``[1, C, 1, 1] -> [1, C]`` one Flatten;
- Reshape keeps the batch axis as 0, so the batch can be made dynamic;
- nodes are topologically sorted and named; ``node.metadata_props["source"]`` names the torch module
  a node came from where that is known.
"""
