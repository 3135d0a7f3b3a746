"""Every TPU kernel compiles, in a child process, for chips that are not there."""

import json

import pytest

from kernels import check
from kernels.check import CHIPS, KERNEL_PROGRAMS, Job, compile_jobs, main

ATTENTION = {
  "attention_forward": "phi4_attention_forward",
  "attention_backward": "phi4_attention_backward",
}


def _check(jobs):
  outcomes = list(compile_jobs(jobs))
  assert [outcome.job for outcome in outcomes] == jobs
  for outcome in outcomes:
    assert not outcome.error, outcome
    assert outcome.calls == (ATTENTION[outcome.job.kernel],)
    assert 0 < outcome.vmem_bytes < outcome.vmem_limit_bytes


def test_attention_kernels_compile_for_v5p_and_v6e():
  _check(
    [Job(kernel=k, chip=c, length=1024) for k in ATTENTION for c in ("v5p", "v6e")]
  )


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_attention_kernels_compile_for_every_chip_at_4096_and_16384(chip):
  lengths = (4096, 16384)
  _check([Job(kernel=k, chip=chip, length=n) for k in ATTENTION for n in lengths])


def test_a_refusal_and_a_dead_compiler_are_rows_of_the_table(
  monkeypatch, capsys, tmp_path
):
  """The second job kills its process; the third is done by another one."""
  script = (
    "import json, os, sys\n"
    "for job in json.loads(sys.argv[-1]):\n"
    "  if job['length'] == 2: sys.exit('no such instruction')\n"
    "  error = 'E1001: Ran out of vmem' if job['length'] == 1 else ''\n"
    "  print(json.dumps(dict(job=job, error=error, seconds=1.5, calls=['k'],\n"
    "    vmem_bytes=2**21, vmem_limit_bytes=2**26, chip_kind='TPU v5')), flush=True)\n"
  )
  (tmp_path / "kernels").mkdir()
  (tmp_path / "kernels" / "check.py").write_text(script)
  monkeypatch.setattr(check, "_ROOT", tmp_path)
  monkeypatch.delenv("PYTHONPATH", raising=False)
  path = tmp_path / "out.json"
  arguments = ["--chips=v5p", "--kernels=attention_forward", "--lengths=1,2,3"]
  assert main([*arguments, f"--json={path}"]) == 1
  first, second, third = capsys.readouterr().out.splitlines()[1:]
  assert "no" in first.split() and "E1001" in first
  assert "the compiler died (1): no such instruction" in second
  assert "yes" in third.split() and "2.0 of   64" in third
  assert [row["job"]["length"] for row in json.loads(path.read_text())] == [1, 2, 3]


def test_unknown_names_list_the_known_ones(capsys):
  with pytest.raises(SystemExit):
    main(["--chips=v6p"])
  assert f"unknown v6p. Known: {', '.join(CHIPS)}" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    main(["--kernels=splash"])
  assert ", ".join(KERNEL_PROGRAMS) in capsys.readouterr().err
