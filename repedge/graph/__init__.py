"""The narrow waist: everything in front becomes a *clean graph*, everything behind reads one.

The container is ``onnx_ir.Model``. A clean graph is what ``repedge.passes.simplify`` returns and
what every target may rely on:

- opset 20 of the default domain, float32, no control flow, no functions;
- one input, static shape [1, C, H, W]; every value has a static shape and a dtype;
- weights, scales, shapes, axes, clip bounds and the like are initializers (no Constant nodes);
- no Identity, Dropout, Cast-to-same, dead nodes or unused initializers;
- GELU is one Gelu node, hard-swish one HardSwish node, a mean over H and W one GlobalAveragePool,
  ``[1, C, 1, 1] -> [1, C]`` one Flatten;
- a fully connected layer is Gemm(x, weight [out, in], bias [out]) with transB = 1 and alpha = beta = 1;
- pads are numbers (no auto_pad, output_shape or ceil_mode), and zero padding ahead of a Conv is part of it;
- a Pad has one amount per end of every axis (no ``axes`` input), none negative, in mode constant, edge or
  reflect: cropping is a Slice, wrapping a Concat;
- axes are not negative; Split has its sizes, Slice its starts, ends, axes and steps inside the tensor, steps
  positive: going backward is a Gather of the positions;
- an assignment to a slice (ScatterND, ScatterElements at constant places) is Slices and a Concat;
- no value is without elements, unless it is an output;
- Squeeze, Unsqueeze and the like are Reshape, with plain sizes but for the batch axis, which it keeps
  as 0 (so the batch can be made dynamic); what only moves axes of length 1 is a Reshape, too;
- Clip has scalar bounds, Clip to [0, inf) is Relu; Sum, Max and Min by a constant are Add and Clip;
- an Einsum of one or two operands is Transpose, ReduceSum, Reshape and MatMul;
- attention is MatMul, Mul, Add, Softmax; GroupNormalization is an InstanceNormalization of [N, groups, -1]
  between two Reshapes, then Mul and Add per channel; RMSNormalization is Mul, ReduceMean, Sqrt, Div, Mul;
  what goes backward or picks positions is a Gather, a running sum a product with a triangle of ones;
- values may be int64, int32 or bool: positions (ArgMax, TopK), comparisons and what is cast to them;
- BatchNormalization that could not be fused stays, in inference form with one output;
- nodes are topologically sorted and named; ``node.metadata_props["source"]`` names the torch module
  a node came from where that is known.
"""
