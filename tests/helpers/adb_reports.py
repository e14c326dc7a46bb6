"""What TFLite's benchmark_model prints, in pieces; the form of release 2.17 and of LiteRT."""
# ruff: noqa: E501 - lines as the tool prints them

HEAD = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [4]
INFO: Loaded model /data/local/tmp/m.tflite
INFO: Initialized TensorFlow Lite runtime.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
{delegates}
INFO: The input model file size (MB): 4.2761
INFO: Initialized session in 87.639ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 60 seconds.
{warmup}

INFO: Running benchmark for at least 10 iterations and at least 0 seconds but terminate if exceeding 60 seconds.
{runs}

INFO: Inference timings in us: Init: 87639, First inference: 10643, Warmup (avg): 10606.5, Inference (avg): 1.05e+04
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE.
INFO: Memory footprint delta from the start of the tool (MB): init=14.5 overall=15.25
"""
XNNPACK = (
    "VERBOSE: Replacing 28 out of 31 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 3 partitions "
    "for subgraph 0.\n"
    "INFO: Explicitly applied XNNPACK delegate, and the model graph will be partially executed by the delegate "
    "w/ 2 delegate kernels."
)
GPU = (
    "INFO: GPU delegate created.\nVERBOSE: Replacing 31 out of 31 node(s) with delegate (TfLiteGpuDelegateV2) node, "
    "yielding 1 partitions for the whole graph.\nINFO: Explicitly applied GPU delegate, and the model graph will be "
    "completely executed by the delegate."
)
WARM = "INFO: count=5 first=10643 curr=10592 min=10590 max=10643 avg=10606.5 std=19 p5=10590 median=10594 p95=10643"
RUNS = "INFO: count=10 first=10602 curr=10578 min=10400 max=10652 avg=10500 std=26 p5=10410 median=10510 p95=10628"
PEAK = """INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.25
INFO: Memory status at the end of exeution:
INFO: - VmRSS              : 93 MB
"""
COLUMNS = "\t[node type]\t [first]\t[avg ms]\t [%]\t [cdf%]\t [mem KB]\t[times called]\t[Name]"
TABLES = f"""INFO: Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
{COLUMNS}
\t ModifyGraphWithDelegate\t 14.842\t 14.842\t 99.3%\t 99.3%\t 3428.000\t 1\tModifyGraphWithDelegate/0

INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
{COLUMNS}
\t Convolution (NHWC, QU8) IGEMM\t 0.267\t 0.278\t 3.783%\t 3.783%\t 0.000\t 1\tDelegate/Convolution (NHWC, QU8) IGEMM:0
\t CONCATENATION\t 0.004\t 0.004\t 0.049%\t 81.766%\t 0.000\t 2\t[concat_1]:108

============================== Top by Computation Time ==============================
{COLUMNS}
\t Convolution (NHWC, QU8) IGEMM\t 0.267\t 0.278\t 3.783%\t 3.783%\t 0.000\t 1\tDelegate/Convolution (NHWC, QU8) IGEMM:0

Number of nodes executed: 2
"""
UNUSED = (
    "INFO: Though NNAPI delegate is explicitly applied, the model graph will not be executed by the delegate."
)
