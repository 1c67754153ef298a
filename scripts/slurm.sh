#!/usr/bin/env bash
# One run over several GPUs and nodes under Slurm, requeued until it is done:
#   sbatch --nodes=2 --time=4:00:00 scripts/slurm.sh search --config=configs/search_cifar10.py --workdir=runs/s0
#   sbatch scripts/slurm.sh retrain --config=configs/retrain_imagenet.py --config.genotype=DARTS_V2 --workdir=runs/t0
# One process a GPU, which is how JAX reads Slurm's variables; --workdir and the data must lie
# on a disk that all nodes share. Before the time is up Slurm sends SIGTERM: the run saves, and
# the same command goes on from there, also with another number of nodes.
#SBATCH --job-name=darts-jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

# Slurm copies the script elsewhere; the job starts where it was submitted, in the checkout.
python=${VIRTUAL_ENV:-$PWD/.venv}/bin/python
if [[ ! -x $python ]]; then
    echo "no $python: submit from the checkout, after scripts/quickstart.sh has installed it" >&2
    exit 1
fi
srun --kill-on-bad-exit=1 "$python" -m darts_jax "$@" --distributed
status=$?
if (( status == 143 )); then # stopped by SIGTERM, all saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
