import hashlib, json, os
import torch, nodes, pytest
from conftest import conditioning, comfy_model, diffusers_unet
from test_regions import demo, plain, nine, picture, box_mask, BOX


def h(t):
    return hashlib.sha256(t.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def test_bits(pack, demo, plain, nine):
    out = {}
    ed = pack("nodes.regions.editors")
    conds = [conditioning("sd1", s) for s in (1, 2, 3)]

    def run(name, make, image, boxes, extra=None):
        with torch.inference_mode():
            (editor,) = make().result
        said = []
        with torch.inference_mode(False), torch.no_grad():
            with editor.open(image, lambda t: said.append((t.step, t.steps))) as e:
                for box in boxes:
                    for q in ("screen", "full"):
                        out[f"{name} {box} {q}"] = h(e.render(image, box_mask(image, box), box, seed=5, quality=q))
                out[f"{name} shared"] = getattr(e, "shared_evaluations", None)
                out[f"{name} evals"] = [e.denoiser.evaluations.forward, e.denoiser.evaluations.backward]
                out[f"{name} cost"] = [e.cost("screen"), e.cost("full")]
                out[f"{name} id"] = e.identity
                if hasattr(e, "preview"):
                    out[f"{name} preview"] = h(e.preview(image, seed=2))
                if hasattr(e, "change"):
                    out[f"{name} change"] = h(e.change(image))
                    out[f"{name} loc"] = [e.located, e.screening_cost]
                out[f"{name} said"] = len(said)

    boxes = [BOX, (0, 0, 16, 16), (50, 30, 6, 10)]
    image = picture()
    for model, tag in ((plain, "plain"), (nine[1], "nine")):
        run(
            f"inpaint {tag}",
            lambda: ed.RegionInpaintEditor.execute(
                model,
                demo[2],
                *conds[:2],
                steps=3,
                screening_steps=1,
                cfg=3.0,
                strength=1.0,
                context=0.5,
                working_size=0,
                feather=2,
            ),
            image,
            boxes,
        )
        run(
            f"inpaint {tag} strength",
            lambda: ed.RegionInpaintEditor.execute(
                model,
                demo[2],
                *conds[:2],
                steps=4,
                screening_steps=2,
                cfg=1.0,
                strength=0.5,
                context=100.0,
                working_size=64,
                feather=0,
            ),
            image,
            boxes,
        )
    run(
        "invert plain",
        lambda: ed.RegionInversionEditor.execute(
            plain,
            demo[2],
            conds[0],
            conds[1],
            steps=3,
            screening_steps=2,
            cfg=3.0,
            guidance=0.3,
            working_size=0,
            feather=2,
            negative=conds[2],
        ),
        image,
        boxes,
    )
    with torch.inference_mode():
        c = [
            nodes.CLIPTextEncode().encode(demo[1], t)[0]
            for t in ("a portrait of a person", "a portrait of a person with glasses", "")
        ]
    pic = picture(96, 128, 3)
    for g, s in ((0.1, 0), (0.0, 2), (0.2, 4)):
        run(
            f"invert demo {g} {s}",
            lambda: ed.RegionInversionEditor.execute(
                demo[0],
                demo[2],
                c[0],
                c[1],
                steps=4,
                screening_steps=s,
                cfg=2.0,
                guidance=g,
                working_size=64,
                feather=2,
            ),
            pic,
            boxes,
        )
    run(
        "inpaint demo",
        lambda: ed.RegionInpaintEditor.execute(
            demo[0],
            demo[2],
            c[1],
            c[2],
            steps=3,
            screening_steps=1,
            cfg=2.0,
            strength=1.0,
            context=0.5,
            working_size=64,
            feather=2,
        ),
        pic,
        boxes,
    )
    # whole nodes
    b = pack("nodes.regions.generator").RegionBoxGenerator
    m = pack("nodes.regions.models")
    with torch.inference_mode():
        vis = m.LoadVisionFeatures.execute("demo model", 0).result[0]
        clip = m.LoadCLIPScorer.execute("demo model", "ViT-B-16").result[0]
        img, caption, _, target = (
            pack("nodes.demo.load").LoadDemoImage.execute(pictures="glasses: none to glasses", number=0).args[:4]
        )
        cc = [nodes.CLIPTextEncode().encode(demo[1], t)[0] for t in (caption, target, "")]
        eds = {
            "inv": ed.RegionInversionEditor.execute(
                demo[0],
                demo[2],
                cc[0],
                cc[1],
                steps=4,
                screening_steps=0,
                cfg=1.5,
                guidance=0.05,
                working_size=64,
                feather=2,
            ).result[0],
            "inp": ed.RegionInpaintEditor.execute(
                demo[0],
                demo[2],
                cc[1],
                cc[2],
                steps=2,
                screening_steps=1,
                cfg=1.5,
                strength=1.0,
                context=1.0,
                working_size=64,
                feather=2,
            ).result[0],
        }
        for name, strategy in (
            ("inv", "halving"),
            ("inv", "exact"),
            ("inp", "halving"),
            ("inp", "soft mask"),
            ("inp", "sampled"),
        ):
            r = b.execute(
                image=img,
                vision_features=vis,
                clip_scorer=clip,
                region_editor=eds[name],
                source_text=caption,
                target_text=target,
                anchors=2,
                sizes="0.3, 0.6",
                strategy=strategy,
                budget=4,
                seed=3,
                aspect_ratios="1",
                spread=1,
                epochs=3,
                winner="tightest of the best",
                clip_weight=1.0,
                direction_weight=1.0,
                structure_weight=1.0,
                crops=0,
                mask_use="restrict",
                most_candidates=0,
                on_cancel="use the best so far",
                change_anchors=2,
                refine=True,
            ).result
            out[f"gen {name} {strategy}"] = [
                h(r[0]),
                r[1],
                r[2],
                h(r[3]),
                h(r[4]),
                r[5],
                h(r[6]),
                [h(p) for p in r[7].parameters()],
                r[8],
            ]
        t = pack("nodes.regions.trainer").RegionNetworkTrainer
        r = t.execute(
            vision_features=vis,
            clip_scorer=clip,
            region_editor=eds["inp"],
            source_text=caption,
            target_text=target,
            folder="",
            image_size=64,
            schedule="as set below",
            epochs=2,
            learning_rate=0.003,
            anchors=1,
            sizes="0.3, 0.6",
            strategy="exact",
            budget=4,
            seed=3,
            aspect_ratios="1",
            spread=1,
            clip_weight=1.0,
            direction_weight=1.0,
            structure_weight=1.0,
            crops=0,
            on_cancel="use the best so far",
            images=img,
        ).result
        out["train"] = [[h(p) for p in r[0].parameters()], h(r[1]), r[2]]
    path = os.environ["BITS"]
    json.dump(out, open(path, "w"), indent=1)
