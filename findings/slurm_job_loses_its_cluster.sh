#!/usr/bin/env bash
# A Slurm cluster whose configuration lies elsewhere than in /etc/slurm is named by SLURM_CONF, which every Slurm command heeds and which
# sites set in a module. Snakemake's Slurm executor starts the engine once more inside each job, with the executor "slurm-jobstep", which
# starts the rule by srun. One would guess that this srun sees the environment of its job.
#
# It does not: the jobstep plugin takes every variable that begins with SLURM_ out of the environment of srun, SLURM_CONF as well. On a
# cluster that is found by that variable alone every job fails with "Could not establish a configuration source", while sbatch, squeue and
# the submission worked. (Here a stand-in for srun prints what it sees; no cluster is needed to show it.)
#
# Remedy: a link to the configuration in /etc/slurm on the nodes, or a wrapper of srun that sets the variable.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet snakemake==9.27.1 snakemake-executor-plugin-slurm-jobstep==0.6.1 2>/dev/null
mkdir "$folder/bin" "$folder/work"
cat > "$folder/bin/srun" <<'SH'
#!/usr/bin/env bash
echo "srun sees SLURM_CONF=${SLURM_CONF:-nothing}, SITE_SETTING=${SITE_SETTING:-nothing}" >> "$SEEN"
touch out.txt
SH
chmod +x "$folder/bin/srun"
cd "$folder/work"
printf 'rule all:\n    output: "out.txt"\n    shell: "touch {output}"\n' > Snakefile
export SEEN="$folder/seen.txt" SLURM_CONF="$folder/slurm.conf" SITE_SETTING=kept SLURM_JOB_ID=1
PATH="$folder/bin:$PATH" "$folder/env/bin/snakemake" --executor slurm-jobstep --jobs 1 out.txt > log.txt 2>&1 || true
"$folder/env/bin/pip" list 2>/dev/null | grep -i -E "^snakemake( |-executor)"
cat "$SEEN" || { tail -20 log.txt; exit 1; }
grep -q "SLURM_CONF=nothing, SITE_SETTING=kept" "$SEEN" || { echo "changed"; exit 1; }
echo "as described"
