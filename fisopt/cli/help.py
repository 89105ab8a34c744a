"""The texts of ``--help``; a paragraph that starts with a backspace keeps its line breaks."""

from __future__ import annotations

APP = """Make video diffusion transformers faster by rewriting their graphs, without training.

\b
Examples:
  fisopt demo                           clips, dense and optimised, in out/
  fisopt doctor                         what is installed, and what is missing
  fisopt models                         which models and presets are known
  fisopt choose wan2.2-a14b --speed 2   which preset to take, without weights
  fisopt inspect wan2.2-a14b            what a model costs, without weights
  fisopt inspect wan2.2-a14b -p fis-a   ... and what a preset makes of it
  fisopt codegen wan2.2-a14b -p fis-a   the kernels that are emitted for it
  fisopt compare testbed -c fis-a -c fis-fast    time and quality of several
  fisopt calibrate testbed --keep 0.8            a schedule for TokenReduction
  fisopt search testbed --threshold 0.05         masks for TileAttention
  fisopt tune testbed --target 2x                passes for a speed
  fisopt distill testbed -p fis-fast             weights used to passes
  fisopt export testbed -p fis-fast -o fast.pt2  a file that torch alone runs

[cyan]fisopt --install-completion[/cyan] completes commands and options in your shell.
From Python it is one call: [cyan]fisopt.optimize(pipe, passes=\\["fis-a"])[/cyan].
"""

DOCTOR = """Say what is installed here, what is missing, and what that is for.

Versions, devices, attentions of packages, the C++ compiler, caches, the
testbed's weights, and the packages that single commands need.

\b
Example:
  fisopt doctor
"""

MODELS = """List the model families, their published models with shapes and sizes, and the presets.

\b
Example:
  fisopt models

The names in the first column are what [cyan]fisopt inspect[/cyan] takes.
"""

CHOOSE = """Name the preset to take for a speed, and why; no weights are needed.

The model is captured from its shapes alone and every preset is costed for
it.  Among those that are fast enough the one is named that stays closest to
the dense clip on the bundled testbed, at about as many denoising steps.

\b
Examples:
  fisopt choose wan2.2-a14b --speed 2
  fisopt choose hunyuanvideo-1.5 --speed 1.5 --steps 25
"""

INSPECT = """Show what a model computes and what passes make of it; no weights are needed.

The model, a published one or that of a pipeline, is built from its shapes
alone, captured as a graph of blocks, rewritten, verified and costed.  For a
published one that takes one to four minutes and about a GB.

\b
Examples:
  fisopt inspect testbed
  fisopt inspect wan2.2-ti2v-5b
  fisopt inspect wan2.2-a14b --frames 41 --height 480 --width 832
  fisopt inspect hunyuanvideo-1.5 --pass fis-a --no-text
  fisopt inspect mochi-1 --pass 'FrameInterleave(stride=4, scope="attention")'
  fisopt inspect ltx-video --pass few-fast --steps 8 --blocks --full > ltx.txt
  fisopt inspect mochi-1 --pass 'published_reduction("mochi-1", tables="DIR")'
"""

CODEGEN = """Print the Triton kernels that are emitted for a model; no GPU, no weights are needed.

The model is captured from shapes alone and rewritten, and regions of its
blocks (norms, rotary embeddings, gathers, gates, fills) are written as one
kernel each.  For every kernel: its name, what it does, which blocks use it,
and its source.  Last, what is left to Inductor and why.

\b
Examples:
  fisopt codegen wan2.2-ti2v-5b --pass fis-a --no-source
  fisopt codegen wan2.2-a14b --pass fis-a --frames 41 > kernels.txt
  fisopt codegen cogvideox-5b --pass 'FrameInterleave(stride=3)'
"""

DEMO = """Generate the same clips with the bundled testbed model, dense and optimised, and compare.

Both run on this machine, from the same noise, both compiled, and are warmed
up before they are timed.  Writes an animated side-by-side (GIF and MP4), a
still sheet (PNG), the figures (JSON) and a page that plays the clips (HTML;
needs: pip install 'fisopt[compare]').

\b
Examples:
  fisopt demo
  fisopt demo --steps 25 --pass many-fast
  fisopt demo --pass 'FrameInterleave(stride=4, kv="all", scope="attention")'
  fisopt demo --prompt "red circle moving left fast over waves" --seed 7
  fisopt demo --ranks 2                 two processes make each clip together

\b
Words of a prompt:
  COLOUR      red green blue yellow magenta cyan
  SHAPE       circle square triangle
  DIRECTION   left right up down
  SPEED       slow fast
  BACKGROUND  plain waves stripes checks clouds
"""

COMPARE = """Make the same clips under several configurations, and compare time and quality.

Each prompt is made from the same noise dense and under every --config, in
turns.  Said are seconds, PSNR, SSIM, MS-SSIM, FLIP, flicker and motion
against the dense clip, PSNR by frame, what a scorer reads (the testbed's
own, or --scorer clip), each with its 95 % interval, and how far two dense
runs differ: that much is noise.  Writes compare.html, one page that plays
the clips side by side and needs no network, and compare.json.
Needs: pip install 'fisopt[compare]'.

\b
Examples:
  fisopt compare testbed
  fisopt compare testbed --config fis-a --config fis-fast --count 12
  fisopt compare testbed --prompts prompts.txt --config recipe.yaml
  fisopt compare testbed -c 'fis-faithful + StepCache()' --steps 25
  fisopt compare ./Wan2.2-TI2V-5B-Diffusers --frames 81 --scorer clip
"""

CALIBRATE = """Measure where a model's tokens are alike and write a schedule of token reduction.

The dense model generates for some prompts while its tokens are matched.
Blocks and steps are ranked into tiers, and thresholds are chosen for a cost
of attention or an error of the output.  Writes the schedule (YAML), its
tables (safetensors) and a heat map (PNG); a run that was cut short goes on
from there.

\b
Examples:
  fisopt calibrate testbed --keep 0.8
  fisopt calibrate testbed --prompts 8 --steps 4 --target-error 0.05
  fisopt calibrate ./CogVideoX-2b --steps 50 --keep 0.8
  fisopt demo --pass 'TokenReduction(schedule="out/schedule.yaml")'
"""

SEARCH = """Find a mask for the self-attention of every layer, on a pipeline's own denoising.

Each block runs dense and under every candidate mask, at every step of some
clips.  Chosen are the sparsest masks within an error (--threshold, the
relative L2 distance that they move the video that a block returns; the r of
the paper, Efficient-vDiT, is on another scale), or the best ones for a cost
(--speed).  Then all are checked together.  A search that was stopped
goes on from there.  Writes masks.json, which TileAttention takes as its
table, and pictures of the masks, of the attention under them and of the
density by layer (PNG).

\b
Examples:
  fisopt search testbed --threshold 0.05
  fisopt search testbed --speed 1.1 --steps 25 --out masks
  fisopt search testbed --threshold 0.2 --candidate 'SlidingWindow(radius=2)'
  fisopt search ./Wan2.2-TI2V-5B-Diffusers --threshold 0.05 --frames 81
  fisopt demo --pass 'TileAttention(table="out/masks.json")'
"""

TUNE = """Choose passes for a pipeline by a target: a speed, a time, or an error.

For each block, branch of it and group of denoising steps, one of many
options is chosen (strides, fewer tokens, tile masks, reused steps), by the
error that it alone leaves in the final latents.  Whole plans are then
measured and repaired, until the minutes are over.  Writes a recipe; what was
measured stays beside it, so that a search that was stopped goes on, and one
for another target is quick.

\b
Examples:
  fisopt tune testbed --target 2x
  fisopt tune testbed --target "psnr>=28" --minutes 5
  fisopt tune ./Wan2.2-T2V-A14B-Diffusers --target 2.5x --steps 4 --dry-run
  fisopt export testbed --recipe out/recipe.yaml -o fast.pt2
"""

DISTILL = """Train a student of a pipeline: of few steps, or one that has learnt to be sparse.

[cyan]fisopt distill MODEL[/cyan] is short for [cyan]fisopt distill train MODEL[/cyan].

\b
Examples:
  fisopt distill testbed --teacher-steps 48 --steps 4 --prompts prompts.txt
  fisopt distill testbed --pass fis-fast --steps 4 --train-steps 2000
  fisopt distill prepare testbed --prompts prompts.txt --steps 4
  fisopt distill train --help                    all that can be said
"""

PREPARE = """Record what a pipeline tells its transformer for some prompts.

Text encoders run here, once for each prompt, and never again: training from
--prepared needs the transformer alone.  Say the --steps, the size and the
--guidance that the student will be trained with; without guidance one branch
is recorded.

\b
Examples:
  fisopt distill prepare testbed --prompts prompts.txt --steps 4
  fisopt distill prepare ./Wan2.2-TI2V-5B-Diffusers --frames 81 --out data
  fisopt distill ./Wan2.2-TI2V-5B-Diffusers --pass fis-a --prepared data
"""

TRAIN = """Train a student of few steps, or one that has learnt to be sparse.

With --teacher-steps the student does in each of its few --steps what its
teacher does in many, guidance folded in, so that it runs without guidance.
With --pass or --recipe it learns to run under passes.  With both it learns
both at once.  The teacher makes its own data: no clips are needed, only
prompts, better hundreds than a few.  A run that was broken off goes on from
the state in --out.  The student is written to OUT/student: weights that
diffusers loads (with --lora an adapter), the recipe, a model card.

\b
Examples:
  fisopt distill testbed --teacher-steps 48 --steps 4 --prompts prompts.txt
  fisopt distill testbed --pass fis-fast --steps 4 --train-steps 2000
  fisopt distill ./Wan2.2-TI2V-5B-Diffusers --recipe fast.yaml --lora 32
"""

EXPORT = """Write an optimised model as files that run elsewhere.

A path that ends in .pt2, .onnx or .txt is one file; any other is a folder,
with a file for each variant where what runs changes with the denoising
step.  A published name has no weights: its graph is written as text.

\b
Examples:
  fisopt export testbed --pass fis-fast -o fast.pt2
  fisopt export testbed --pass few-fast --steps 4 -o few
  fisopt export testbed --pass fis-fast --format onnx -o fast.onnx
  fisopt export ./Wan2.2-TI2V-5B-Diffusers --recipe fast.yaml -o wan.pt2
  fisopt export wan2.2-a14b --pass fis-a --format text -o wan.txt
"""

SIGN = """Write a signature beside artefacts, so that others can tell who made them.

An artefact is compared with its manifest first.  The signature of fast.pt2 is
fast.pt2.minisig; that of a folder is of its manifest, which holds the digests
of all files in it.  Keys and signatures are those of the tool minisign, which
makes a pair of keys with 'minisign -G'.  The password of the key is asked
for, or taken from FISOPT_KEY_PASSWORD.  Needs: pip install 'fisopt[sign]'.

\b
Examples:
  fisopt sign fast.pt2 --key ~/.minisign/minisign.key
  fisopt verify fast.pt2 --public-key minisign.pub
"""

VERIFY = """Check that artefacts are as they were written, and that loading them runs nothing.

Every part is compared with its digest in the manifest, the manifest with
its own, and the graph with the manifest.  Nothing in the files is unpickled,
imported or run.  The exit code is 1 if one of them is not as it was written
or holds code, so that a pipeline of CI stops there.  A digest tells damage
and mistakes; who has written a file only a signature tells (fisopt sign).

\b
Examples:
  fisopt verify fast.pt2
  fisopt verify few/ fast.onnx
  fisopt verify compiled.pt2 --trust code
  fisopt verify fast.pt2 --public-key minisign.pub
"""
