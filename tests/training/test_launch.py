import pytest

from dgl_scale.errors import ConfigError
from dgl_scale.training.launch import describe_launch, first_host, hosts_by_rank


@pytest.mark.parametrize(
    ("nodelist", "expected"),
    [
        ("gpu7", "gpu7"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("gpu[3,5]", "gpu3"),
        ("r[1-2]n[10-14]", "r1n10"),
        ("login1,gpu[1-3]", "login1"),
        ("a100-[001-128]-ib", "a100-001-ib"),
        ("10.0.0.[4-7]", "10.0.0.4"),
    ],
)
def test_first_host_of_slurm_s_lists(nodelist: str, expected: str) -> None:
    assert first_host(nodelist) == expected


def slurm(**more: str) -> dict[str, str]:
    names = {"PROCID": "3", "LOCALID": "1", "NTASKS": "8", "STEP_ID": "0", "JOB_ID": "123456", "JOB_NODELIST": "gpu[2-5]"}
    return {f"SLURM_{name}": value for name, value in (names | more).items()}


def test_srun_gives_rank_size_and_address() -> None:
    environment = slurm()
    describe_launch(environment)
    described = {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    assert described == {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "gpu2", "MASTER_PORT": "13456"}


def test_a_step_of_part_of_the_job_has_its_own_hosts_size_and_port() -> None:
    environment = slurm(STEP_NODELIST="gpu[4-5]", STEP_NUM_TASKS="4", STEP_ID="2")
    describe_launch(environment)
    assert (environment["MASTER_ADDR"], environment["WORLD_SIZE"], environment["MASTER_PORT"]) == ("gpu4", "4", "13470")


def test_what_a_script_sets_wins_over_slurm() -> None:
    environment = slurm() | {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}
    describe_launch(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("head", "29500")


def test_mpirun_gives_rank_and_size_and_no_address() -> None:
    given = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "8"}
    environment = given | {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}
    describe_launch(environment)
    assert (environment["RANK"], environment["LOCAL_RANK"], environment["WORLD_SIZE"]) == ("3", "1", "8")
    with pytest.raises(ConfigError, match=r"mpirun does not say where ranks meet; pass on MASTER_ADDR"):
        describe_launch(dict(given))


def test_a_batch_script_outside_srun_is_one_process() -> None:
    environment = slurm()
    del environment["SLURM_STEP_ID"]
    describe_launch(environment)
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "the launcher set RANK but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "x", "WORLD_SIZE": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK is 'x', and must be a number"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK 2 is not below WORLD_SIZE 2"),
    ],
)
def test_half_a_launch_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe_launch(environment)


def test_without_deepspeed_s_process_above_hosts_are_unknown() -> None:
    assert hosts_by_rank(2) is None
