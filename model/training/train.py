#!/usr/bin/env python3
"""Makes the small text-to-image pipeline in ../builtin. See README.md for the commands.

    train.py --work DIR data --font NotoColorEmoji.ttf    glyphs.png, prompts.txt
    train.py --work DIR tokenizer                         tokenizer/, DIR/data.npz
    train.py --work DIR vae --seconds S --total T         DIR/vae.pt        (resumes)
    train.py --work DIR dit --seconds S --total T         DIR/dit.pt        (resumes)
    train.py --work DIR export                            the folder diffusers loads
    train.py evaluate [--patches 4] [--pictures FOLDER]   recall and PSNR
    train.py sheet FOLDER                                 every prompt's picture, and all as sheet.png

Training is scheduled by time: --total is the length of the whole schedule in seconds, --seconds that of this
run; run again to continue.
"""

import argparse
import os
import pathlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = pathlib.Path(__file__).resolve().parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, help="folder of the training state")
    parser.add_argument("--model", type=pathlib.Path, default=HERE.parent / "builtin", help="the pipeline's folder")
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("data").add_argument("--font", required=True)
    stages.add_parser("tokenizer")
    for name, batch, rate in (("vae", 64, 2e-3), ("dit", 512, 1e-3)):
        stage = stages.add_parser(name)
        stage.add_argument("--seconds", type=float, required=True)
        stage.add_argument("--total", type=float, required=True)
        stage.add_argument("--batch", type=int, default=batch)
        stage.add_argument("--rate", type=float, default=rate)
        if name == "dit":
            stage.add_argument("--compile", action="store_true", help="torch.compile the blocks")
    stages.add_parser("export")
    for name in ("evaluate", "sheet"):
        stage = stages.add_parser(name)
        stage.add_argument("--steps", type=int, default=20)
        stage.add_argument("--guidance", type=float, default=4.5)
        stage.add_argument("--batch", type=int, default=40)
        stage.add_argument("--length", type=int, default=300, help="padded prompt length (32 is faster, same pictures)")
        if name == "evaluate":
            stage.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
            stage.add_argument("--patches", type=int, default=0, help="simulate a patch pipeline of that many strips")
            stage.add_argument("--warmup", type=int, default=1, help="its synchronous first steps")
            stage.add_argument("--save", help="folder for contact sheets")
            stage.add_argument("--pictures", help="score the PNG files of this folder instead")
        else:
            stage.add_argument("folder")
            stage.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.stage in ("tokenizer", "vae", "dit", "export") and not args.work:
        parser.error(f"{args.stage} needs --work")
    return args


def main():
    args = arguments()
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    if args.stage == "data":
        import data

        data.prepare(args.font, args.model)
    elif args.stage == "tokenizer":
        import common
        import data

        data.dataset(args.model, common.VOCAB, args.work / "data.npz")
    elif args.stage == "vae":
        import vae

        vae.train(args.work, args.seconds, args.total, args.batch, args.rate)
    elif args.stage == "dit":
        import dit

        dit.train(args.work, args.seconds, args.total, args.batch, args.rate, args.compile)
    elif args.stage == "export":
        import export

        export.export(args.work, args.model)
    else:
        import evaluate

        if args.stage == "sheet":
            evaluate.write_pictures(args.model, args.folder, args.seed, args.steps, args.guidance, args.batch,
                                    args.length)
        elif args.pictures:
            evaluate.score_folder(args.model, args.pictures)
        else:
            evaluate.evaluate(args.model, args.seeds, args.steps, args.guidance, args.batch, args.length,
                              args.patches, args.warmup, args.save)


if __name__ == "__main__":
    main()
