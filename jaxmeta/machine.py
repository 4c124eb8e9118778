"""What a run is computed on: from options to a mesh, in one process or several."""

import dataclasses

import jax
from jax.sharding import Mesh

from jaxmeta.config import ConfigError, check_name
from jaxmeta.cores import split_cpu
from jaxmeta.devices import make_mesh
from jaxmeta.feed import POOLS
from jaxmeta.models import PRECISIONS
from jaxmeta.processes import is_joined, join_processes

PLANS = ("quick", "auto")


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a run is computed on. Nothing here changes the outcome, but for rounding.

    Attributes:
      devices: Devices that share the tasks, of all processes together; None: all there are.
      model_devices: How many of them share one copy of the model.
      coordinator: HOST:PORT of process 0, to train in several processes; auto: ask SLURM, Open MPI or the pod.
      num_processes: How many processes there are; each is started with the same options.
      process_id: Which of the processes this is, from 0.
      plan: How a step is computed, in which chunks of tasks and what of the inner loop is kept: quick takes the first
        way that fits in memory; auto times the ways before the run, and takes what is clearly the fastest that
        fits.
      memory_mib: MiB that a device may use; None: what is at hand.
      precisions: Precisions that the plan may take in place of the run's own, where they are faster or fit: as tf32,
        bfloat16. They change more than the last digits; none, if none is given.
      pool: Where the images are kept: on the device, or on the host, which reads them ahead of the device; auto: on the
        device if they fit into half of its free memory.
    """

    devices: int | None = None
    model_devices: int = 1
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    plan: str = "quick"
    memory_mib: int | None = None
    precisions: tuple[str, ...] = ()
    pool: str = "auto"


def open_mesh(machine: Machine, tasks: int, *, divide_cpu: bool = True) -> Mesh | None:
    """Join the other processes, if there are any, and arrange the devices.

    Args:
      machine: What was asked for.
      tasks: Tasks in a step: more devices than these would stand idle.
      divide_cpu: Let each core of a CPU be a device, if no number was asked for. On two cores a step of
        convolutions then took 0.7 to 0.9 of the time; one that takes less than a millisecond, 1.7 times as long.

    Returns:
      A mesh, or None for a single device.

    Raises:
      ConfigError: for options that do not go together, or devices that are not there.
      OSError: if the processes do not meet.
    """
    _check(machine)
    _join(machine)
    if not is_joined() and (divide_cpu or machine.devices is not None):
        split_cpu(tasks * max(machine.model_devices, 1) if machine.devices is None else machine.devices)
    devices, at_hand = machine.devices, len(jax.devices())
    if jax.process_count() > 1 and devices not in (None, at_hand):
        raise ConfigError(f"--devices must be all {at_hand} of the processes together, or left out; given {devices}.")
    if devices is None:
        devices = at_hand
        if jax.process_count() == 1 and machine.model_devices > 0:
            devices = min(at_hand // machine.model_devices, tasks) * machine.model_devices or at_hand
    try:
        mesh = make_mesh(devices, model_devices=machine.model_devices)
    except ValueError as error:
        raise ConfigError(f"--devices {devices} --model-devices {machine.model_devices}: {error}") from error
    return mesh if mesh.size > 1 else None


def _check(machine: Machine) -> None:
    check_name("plan", machine.plan, PLANS)
    check_name("pool", machine.pool, POOLS)
    for name in machine.precisions:
        check_name("precision", name, PRECISIONS)
    if machine.memory_mib is not None and machine.memory_mib < 1:
        raise ConfigError(f"--memory-mib must be at least 1; given {machine.memory_mib}.")


def _join(machine: Machine) -> None:
    coordinator, num_processes, process_id = machine.coordinator, machine.num_processes, machine.process_id
    missing = [name for name in ("coordinator", "num_processes", "process_id") if getattr(machine, name) is None]
    if missing and len(missing) < 3 and coordinator != "auto":
        raise ConfigError(
            "--coordinator, --num-processes and --process-id belong together; missing: "
            f"{', '.join('--' + name.replace('_', '-') for name in missing)}."
        )
    if coordinator is None:
        return
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise ConfigError(f"--process-id must be in 0 to {num_processes - 1}; given {process_id}.")
    join_processes(coordinator, num_processes, process_id)
