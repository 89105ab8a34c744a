"""The texts of ``--help``; a paragraph that starts with a backspace keeps its line breaks."""

from __future__ import annotations

APP = """Make video diffusion transformers faster by rewriting their graphs, without training.

\b
Examples:
  fisopt demo                           clips, dense and optimised, in out/
  fisopt doctor                         what is installed, and what is missing
  fisopt models                         the known models and presets
  fisopt choose wan2.2-a14b --speed 2   which preset to use, without weights
  fisopt inspect wan2.2-a14b            what a model costs, without weights
  fisopt inspect wan2.2-a14b -p fis-a   ... and under a preset
  fisopt codegen wan2.2-a14b -p fis-a   the kernels that fisopt generates
  fisopt compare testbed -c fis-a -c fis-fast    time and quality of presets
  fisopt calibrate testbed --keep 0.8            a schedule for TokenReduction
  fisopt search testbed --threshold 0.05         masks for TileAttention
  fisopt tune testbed --target 2x                passes for a speed
  fisopt distill testbed -p fis-fast             weights trained for passes
  fisopt export testbed -p fis-fast -o fast.pt2  a file that torch alone runs

[cyan]fisopt --install-completion[/cyan] completes commands and options in your shell.
From Python it is one call: [cyan]fisopt.optimize(pipe, passes=\\["fis-a"])[/cyan].
"""

DOCTOR = """Show what is installed here, what is missing, and what needs it.

Lists versions, devices, attention packages, the C++ compiler, caches, the
testbed's weights, and the packages that single commands need.

\b
Example:
  fisopt doctor
"""

MODELS = """List the model families, their published models with shapes and sizes, and the presets.

\b
Example:
  fisopt models

[cyan]fisopt inspect[/cyan] takes the names in the first column.
"""

CHOOSE = """Name the preset to use for a speed, and why; this needs no weights.

fisopt captures the model from its shapes alone and computes the cost of
every preset.  Among the presets that are fast enough it names the one that
stays closest to the dense clip on the bundled testbed, at about as many
denoising steps.

\b
Examples:
  fisopt choose wan2.2-a14b --speed 2
  fisopt choose hunyuanvideo-1.5 --speed 1.5 --steps 25
"""

INSPECT = """Show what a model computes and how passes change it; this needs no weights.

fisopt builds the model (a published one or a pipeline's) from its shapes
alone, captures it as a graph of blocks, applies the passes, verifies the
result and computes its cost.  A published model takes one to four minutes
and about 1 GB of memory.

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

CODEGEN = """Print the Triton kernels that fisopt generates for a model; no GPU or weights needed.

fisopt captures the model from its shapes alone, applies the passes, and
generates one kernel for each region of its blocks (norms, rotary embeddings,
gathers, gates, fills).  For every kernel the command prints its name, what
it does, which blocks use it, and its source.  At the end it lists what
Inductor compiles instead, and why.

\b
Examples:
  fisopt codegen wan2.2-ti2v-5b --pass fis-a --no-source
  fisopt codegen wan2.2-a14b --pass fis-a --frames 41 > kernels.txt
  fisopt codegen cogvideox-5b --pass 'FrameInterleave(stride=3)'
"""

DEMO = """Generate the same clips with the bundled testbed model, dense and optimised, and compare.

Both models run on this machine, compiled, from the same noise, and warm up
before the timing starts.  The command writes an animated side-by-side (GIF
and MP4), a contact sheet (PNG), the figures (JSON) and a page that plays the
clips (HTML; needs: pip install 'fisopt\\[compare]').

\b
Examples:
  fisopt demo
  fisopt demo --steps 25 --pass many-fast
  fisopt demo --pass 'FrameInterleave(stride=4, kv="all", scope="attention")'
  fisopt demo --prompt "red circle moving left fast over waves" --seed 7
  fisopt demo --ranks 2                 two processes share each clip

\b
Words of a prompt:
  COLOUR      red green blue yellow magenta cyan
  SHAPE       circle square triangle
  DIRECTION   left right up down
  SPEED       slow fast
  BACKGROUND  plain waves stripes checks clouds
"""

COMPARE = """Generate the same clips under several configurations; compare time and quality.

The dense model and every --config generate each prompt in turn, from the
same noise.  The command reports seconds; PSNR, SSIM, MS-SSIM, FLIP, flicker
and motion against the dense clip; PSNR by frame; and the scorer's numbers
(the testbed's own scorer, or --scorer clip).  Each figure has its 95 %
interval.  The noise floor is how far two dense runs differ.  The command
writes compare.html, one page that plays the clips side by side without a
network, and compare.json.
Needs: pip install 'fisopt\\[compare]'.

\b
Examples:
  fisopt compare testbed
  fisopt compare testbed --config fis-a --config fis-fast --count 12
  fisopt compare testbed --prompts prompts.txt --config recipe.yaml
  fisopt compare testbed -c 'fis-faithful + StepCache()' --steps 25
  fisopt compare ./Wan2.2-TI2V-5B-Diffusers --frames 81 --scorer clip
"""

CALIBRATE = """Measure where a model's tokens are similar and write a token-reduction schedule.

The dense model generates clips for some prompts while fisopt matches its
tokens.  fisopt then ranks blocks and steps into tiers and chooses thresholds
that reach a cost of attention or an error of the output.  The command writes
the schedule (YAML), its tables (safetensors) and a heat map (PNG).  An
interrupted run resumes where it stopped.

\b
Examples:
  fisopt calibrate testbed --keep 0.8
  fisopt calibrate testbed --prompts 8 --steps 4 --target-error 0.05
  fisopt calibrate ./CogVideoX-2b --steps 50 --keep 0.8
  fisopt demo --pass 'TokenReduction(schedule="out/schedule.yaml")'
"""

SEARCH = """Find a mask for the self-attention of every layer, on a pipeline's own denoising.

Each block runs dense and under every candidate mask, at every step of some
clips.  fisopt then chooses the sparsest masks within an error, or the best
masks for a cost (--speed), and checks all of them together.  The error
(--threshold) is the relative L2 change of a block's video output; the r of
the paper, Efficient-vDiT, has another scale.  An interrupted search resumes
where it stopped.  The command writes masks.json, which TileAttention takes
as its table, and pictures of the masks, of the attention under them and of
the density by layer (PNG).

\b
Examples:
  fisopt search testbed --threshold 0.05
  fisopt search testbed --speed 1.1 --steps 25 --out masks
  fisopt search testbed --threshold 0.2 --candidate 'SlidingWindow(radius=2)'
  fisopt search ./Wan2.2-TI2V-5B-Diffusers --threshold 0.05 --frames 81
  fisopt demo --pass 'TileAttention(table="out/masks.json")'
"""

TUNE = """Choose passes for a pipeline that reach a target: a speed, a time, or an error.

For each block, branch of a block and group of denoising steps, fisopt
chooses one of many options (strides, fewer tokens, tile masks, reused steps)
by the error that this option alone causes in the final latents.  It then
measures and repairs whole plans until the time limit.  The command writes a
recipe, and next to it the measurements: an interrupted search resumes from
them, and a search for another target is quick.

\b
Examples:
  fisopt tune testbed --target 2x
  fisopt tune testbed --target "psnr>=28" --minutes 5
  fisopt tune ./Wan2.2-T2V-A14B-Diffusers --target 2.5x --steps 4 --dry-run
  fisopt export testbed --recipe out/recipe.yaml -o fast.pt2
"""

DISTILL = """Train a student of a pipeline: with few steps, or to run under passes.

[cyan]fisopt distill MODEL[/cyan] is short for [cyan]fisopt distill train MODEL[/cyan].

\b
Examples:
  fisopt distill testbed --teacher-steps 48 --steps 4 --prompts prompts.txt
  fisopt distill testbed --pass fis-fast --steps 4 --train-steps 2000
  fisopt distill prepare testbed --prompts prompts.txt --steps 4
  fisopt distill train --help                    all options
"""

PREPARE = """Record the inputs that a pipeline gives its transformer for some prompts.

Text encoders run once for each prompt, in this command only: training from
--prepared needs only the transformer.  Set the --steps, the size and the
--guidance of the later training; without guidance the command records one
branch only.

\b
Examples:
  fisopt distill prepare testbed --prompts prompts.txt --steps 4
  fisopt distill prepare ./Wan2.2-TI2V-5B-Diffusers --frames 81 --out data
  fisopt distill ./Wan2.2-TI2V-5B-Diffusers --pass fis-a --prepared data
"""

TRAIN = """Train a student with few steps, or one that runs under passes.

With --teacher-steps the student learns to do in each of its few --steps what
the teacher does in many.  It also learns the teacher's guidance, so that it
runs without guidance.  With --pass or --recipe it learns to run under
passes.  With both it learns both at once.  The teacher makes its own data:
you need no clips, only prompts, better hundreds than a few.  An interrupted
run resumes from the state in --out.  The command writes the student to
OUT/student: weights that diffusers loads (with --lora an adapter), the
recipe and a model card.

\b
Examples:
  fisopt distill testbed --teacher-steps 48 --steps 4 --prompts prompts.txt
  fisopt distill testbed --pass fis-fast --steps 4 --train-steps 2000
  fisopt distill ./Wan2.2-TI2V-5B-Diffusers --recipe fast.yaml --lora 32
"""

EXPORT = """Write an optimised model as files that run elsewhere.

A path that ends in .pt2, .onnx or .txt becomes one file.  Any other path
becomes a folder, with a file for each variant if the passes differ between
denoising steps.  For a published name, which has no weights, the command
writes the graph as text.

\b
Examples:
  fisopt export testbed --pass fis-fast -o fast.pt2
  fisopt export testbed --pass few-fast --steps 4 -o few
  fisopt export testbed --pass fis-fast --format onnx -o fast.onnx
  fisopt export ./Wan2.2-TI2V-5B-Diffusers --recipe fast.yaml -o wan.pt2
  fisopt export wan2.2-a14b --pass fis-a --format text -o wan.txt
"""

SIGN = """Write a signature next to artefacts, so that others can verify who made them.

The command first compares an artefact with its manifest.  The signature of
fast.pt2 is fast.pt2.minisig.  For a folder, it signs the manifest, which
holds the digests of all files in the folder.  Keys and signatures are those
of the tool minisign; 'minisign -G' makes a key pair.  The command asks for
the key's password, or reads it from FISOPT_KEY_PASSWORD.
Needs: pip install 'fisopt\\[sign]'.

\b
Examples:
  fisopt sign fast.pt2 --key ~/.minisign/minisign.key
  fisopt verify fast.pt2 --public-key minisign.pub
"""

VERIFY = """Check that artefacts are unchanged, and that loading them runs nothing.

The command compares every file with its digest in the manifest, the manifest
with its own digest, and the graph with the manifest.  It unpickles, imports
and runs nothing in the files.  The exit code is 1 if an artefact was changed
or holds code, so that a CI job stops there.  A digest detects damage and
mistakes; only a signature proves who wrote a file (fisopt sign).

\b
Examples:
  fisopt verify fast.pt2
  fisopt verify few/ fast.onnx
  fisopt verify compiled.pt2 --trust code
  fisopt verify fast.pt2 --public-key minisign.pub
"""
