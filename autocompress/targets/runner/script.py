"""What runs on the other machine. It needs Python 3.8, NumPy and the runtime, and nothing of this package.

Its text is sent over the command's standard input, with the files in it, and its answer is one line behind MARKER. It
may be imported too, which runs nothing.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import time
from typing import Any, Callable  # noqa: UP035  (Python 3.8)

MARKER = "autocompress-result:"
"""What stands before the answer, so that whatever else is printed does no harm."""


def main(text: str) -> None:
    """Print the answer to a request: an object in JSON."""
    try:
        found = answer(json.loads(text))
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [repr(error)])[0]}"}
    print("\n" + MARKER + json.dumps(found), flush=True)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The machine and the version of the runtime; and the rounds, where there are files to time."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    module = __import__(request["package"])
    found = {"machine": machine(), "version": str(module.__version__)}
    if "files" not in request:
        return found
    arrays = [array(each) for each in request["inputs"]]
    make = {"onnxruntime": onnxruntime_call, "openvino": openvino_call}[request["package"]]
    files = [base64.b64decode(each) for each in request["files"]]
    calls = [make(module, content, request["threads"], request["names"], arrays) for content in files]
    return dict(found, **timed(calls, request["effort"]))


def array(packed: dict[str, Any]) -> Any:
    """The array that was packed."""
    import numpy

    return numpy.frombuffer(base64.b64decode(packed["data"]), packed["dtype"]).reshape(packed["shape"])


def onnxruntime_call(module: Any, content: bytes, threads: int, names: Any, arrays: list[Any]) -> Callable[[], Any]:
    """A function that runs a file in ONNX Runtime."""
    options = module.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    session = module.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feeds = feeds_of([each.name for each in session.get_inputs()], names, arrays)
    return lambda: session.run(None, feeds)


def openvino_call(module: Any, content: bytes, threads: int, names: Any, arrays: list[Any]) -> Callable[[], Any]:
    """A function that runs a file in OpenVINO, compiled for the inputs' shapes."""
    core = module.Core()
    model = core.read_model(content)
    feeds = feeds_of([each.any_name for each in model.inputs], names, arrays)
    model.reshape({name: list(each.shape) for name, each in feeds.items()})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    settings.update({"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False})
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.infer(feeds)
    return lambda: request.infer(feeds, share_inputs=True, share_outputs=True)


def feeds_of(wanted: list[str], names: list[str] | None, arrays: list[Any]) -> dict[str, Any]:
    """Arrays by the names that the file has; a file has no input for what its network does not use."""
    given = {name: arrays[index] for index, name in enumerate(names or wanted)}
    return {name: given[name] for name in wanted}


def timed(calls: list[Callable[[], Any]], effort: dict[str, Any]) -> dict[str, Any]:
    """Bursts of both in turns, in nanoseconds, until their ratio is known well enough or the time is used up."""
    watch = time.perf_counter(), time.process_time()
    best = [min(burst(call, max(1, effort["warm_up"]))) for call in calls]
    count = int(min(max(effort["burst_seconds"] * 1e9 / max(min(best), 1), 1), effort["most_in_burst"]))
    rounds: list[Any] = []
    ratios: list[float] = []
    clean, check = 0.0, effort["least_rounds"]
    end = time.perf_counter() + effort["most_seconds"]
    while len(rounds) < effort["least_rounds"] or (
        len(rounds) < effort["most_rounds"] and clean < effort["seconds"] and time.perf_counter() < end
    ):
        before = switches()
        first, second = (burst(call, count) for call in calls)
        is_clean = switches() == before
        rounds.append([first, second, is_clean])
        if is_clean:
            clean += (sum(first) + sum(second)) / 1e9
            ratios.append(sorted(second)[count // 2] / max(sorted(first)[count // 2], 1))
        if is_clean and len(ratios) >= check:
            check = int(1.5 * len(ratios)) + 1
            if is_tight(ratios, effort["tightness"]):
                break
    wall, cpu = time.perf_counter() - watch[0], time.process_time() - watch[1]
    share = min(max(1.0 - cpu / wall, 0.0), 1.0) if wall > 0 else 0.0
    return {"rounds": rounds, "count": count, "waiting": {"share": share, "load": load()}}


def is_tight(ratios: list[float], tightness: float) -> bool:
    """Whether the median's interval is narrow enough, by order statistics: n / 2 give or take 0.98 times root n."""
    ordered, count = sorted(ratios), len(ratios)
    half = 0.98 * count**0.5
    low, high = ordered[max(0, int(count / 2 - half))], ordered[min(count - 1, int(count / 2 + half))]
    return (high - low) / 2 <= tightness * ordered[count // 2]


def burst(call: Callable[[], Any], count: int) -> list[int]:
    """Nanoseconds of so many runs in a row."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        found.append(int(1e9 * (time.perf_counter() - start)))
    return found


def switches() -> int:
    """How often the system took the processor away; 0 where it does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def load() -> float | None:
    """Mean number of programs that ran or waited in the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def machine() -> dict[str, Any]:
    """The machine that this runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    system = f"{platform.system()} {platform.machine()}"
    return {"processor": processor(), "cores": cores, "system": system}


def processor() -> str:
    """The processor's model name; boards have it under other names."""
    try:
        with open("/proc/cpuinfo", errors="replace") as lines:
            facts = dict([part.strip() for part in line.split(":", 1)] for line in lines if ":" in line)
    except OSError:
        facts = {}
    names = (facts.get(key) for key in ("model name", "Model", "Hardware"))
    return next((name for name in names if name), platform.processor() or platform.machine())
