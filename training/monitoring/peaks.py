"""What a device could do: the peak of its matrix units, for the share of it that a run reaches (MFU)."""

# Dense bf16 or fp16 TFLOP/s without sparsity, from the makers' data sheets; the first name that fits counts.
# A part of a device (MIG) has another name, and no entry.
PEAK_TERAFLOPS = (
    ("NVIDIA B200", 2250.0),
    ("NVIDIA H100 PCIe", 756.0),
    ("NVIDIA H100 NVL", 835.0),
    ("NVIDIA H100", 989.0),
    ("NVIDIA H200 NVL", 835.0),
    ("NVIDIA H200", 989.0),
    ("NVIDIA H800 PCIe", 756.0),
    ("NVIDIA H800", 989.0),
    ("NVIDIA GH200", 989.0),
    ("NVIDIA H20", 148.0),
    ("NVIDIA A100", 312.0),
    ("NVIDIA A800", 312.0),
    ("NVIDIA A30", 165.0),
    ("NVIDIA A40", 149.7),
    ("NVIDIA L40S", 362.0),
    ("NVIDIA L40", 181.0),
    ("NVIDIA L20", 119.5),
    ("AMD Instinct MI300X", 1307.0),
    ("AMD Instinct MI250X", 191.5),  # of one of its two dies, each of which is a device
)


def peak_teraflops(device_name: str) -> float | None:
    """Return the peak of one device in bf16, in TFLOP/s; None for one that is not known, or a part of one."""
    if "MIG" in device_name:
        return None
    for name, peak in PEAK_TERAFLOPS:
        if device_name == name or device_name.startswith((f"{name} ", f"{name}-")):
            return peak
    return None
