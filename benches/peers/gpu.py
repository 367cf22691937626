"""The CUDA driver, by ctypes: what a measurement needs, where nothing but Python is installed."""

import ctypes
import statistics

# More than any GPU's L2 cache holds: launches rotate over copies of their operands that take as much.
ROTATED_BYTES = 512 << 20
WARM_UP, ROUNDS = 2, 15
# So many launches at least between two time stamps.
LAUNCHES = 8


class Absent(Exception):
    """Something that a measurement needs is not installed; the text says what."""


class Gpu:
    """The first device, its primary context, and a stream."""

    def __init__(self):
        try:
            self.cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise Absent(f"no CUDA driver: {error}") from error
        device, context, self.stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        if self.cuda.cuInit(0) != 0:
            raise Absent("no CUDA device")
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", ctypes.byref(self.stream), 0)
        name = ctypes.create_string_buffer(100)
        self.call("cuDeviceGetName", name, 100, device)
        self.name = name.value.decode()
        version = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        self.driver = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        self.start, self.end = ctypes.c_void_p(), ctypes.c_void_p()
        for event in self.start, self.end:
            self.call("cuEventCreate", ctypes.byref(event), 0)

    def call(self, name, *arguments):
        """Calls a function of the driver."""
        status = getattr(self.cuda, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} returned {status}")

    def buffer(self, contents):
        """Device memory: so many bytes, or a copy of these."""
        return Buffer(self, contents)

    def synchronize(self):
        """Waits for the stream."""
        self.call("cuStreamSynchronize", self.stream)

    def median_us(self, launches):
        """Median microseconds of a launch, over rounds in which all of `launches` run in turn."""
        launches = launches * -(-LAUNCHES // len(launches))
        times = []
        for _ in range(WARM_UP + ROUNDS):
            self.call("cuEventRecord", self.start, self.stream)
            for launch in launches:
                launch()
            self.call("cuEventRecord", self.end, self.stream)
            self.call("cuEventSynchronize", self.end)
            milliseconds = ctypes.c_float()
            elapsed = "cuEventElapsedTime_v2"
            if not hasattr(self.cuda, elapsed):  # before CUDA 12.8
                elapsed = "cuEventElapsedTime"
            self.call(elapsed, ctypes.byref(milliseconds), self.start, self.end)
            times.append(1e3 * milliseconds.value / len(launches))
        return statistics.median(times[WARM_UP:])


class Buffer:
    """Device memory, which goes with the object."""

    def __init__(self, gpu, contents):
        self.gpu = gpu
        self.size = contents if isinstance(contents, int) else len(memoryview(contents).cast("B"))
        self.address = ctypes.c_uint64()
        gpu.call("cuMemAlloc_v2", ctypes.byref(self.address), ctypes.c_size_t(max(self.size, 1)))
        if not isinstance(contents, int):
            host = bytes(contents)
            gpu.call("cuMemcpyHtoD_v2", self.address, host, ctypes.c_size_t(self.size))

    def bytes(self):
        """What it holds, when the stream has come so far."""
        self.gpu.synchronize()
        host = ctypes.create_string_buffer(self.size)
        self.gpu.call("cuMemcpyDtoH_v2", host, self.address, ctypes.c_size_t(self.size))
        return host.raw

    def __del__(self):
        self.gpu.cuda.cuMemFree_v2(self.address)


def copies(weights):
    """How many copies of a matrix's bytes a rotation takes."""
    return max(2, -(-ROTATED_BYTES // len(weights)))
