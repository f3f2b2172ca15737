"""Running an algorithm on a MODEL inside the host's own sampling machinery.

A ``CFGGuider`` does the loading, LoRA hooks, ControlNet, areas and model wrappers; instead of a k-diffusion sampler it
is handed a function of a :class:`Session`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import comfy.model_management as model_management
import comfy.patcher_extension
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...core.denoiser import Callback, Denoiser, Evaluations, Progress
from ...core.errors import EditingError
from ...core.gradient_checkpointing import blocks_of, checkpointed
from .attention import WRAPPER_KEY
from .conditioning import require_conditioning
from .denoiser import ComfyDenoiser
from .gradients import frozen, gradient_scope, make_differentiable, materialise, normal_tensors, static_patcher
from .identity import identity, require_no_cache
from .latents import fitted_latent, host_latent, image_latent, latent_from_model, latent_to_model
from .memory import memory_advice
from .session import Session

T = TypeVar("T")
Step = Callable[[Tensor, float], Tensor]

#: Activations saved for a backward pass over the host's estimate for inference: 4.5 for SD 1.5 and 9.7 for SDXL in
#: fp16, counted on their U-Nets with attention that saves no maps.
GRADIENT_ROOM = 10
#: The same where blocks run again: what is kept shrinks to 0.17 of it for SD 1.5 at 512 and 0.13 for SDXL at 1024.
CHECKPOINTED_ROOM = 2
ADVICE = "lower the image size or the batch size"


def run(
    model: Any,
    latent: dict[str, Any],
    conds: dict[str, list[Any]],
    work: Callable[[Session], T],
    *,
    gradients: bool = False,
    gradient_checkpointing: bool = False,
    seed: int = 0,
    sigmas: Tensor | None = None,
    advice: str = ADVICE,
    additional_models: Sequence[Any] = (),
) -> T:
    """Load ``model``, prepare ``conds`` for ``latent`` and return ``work(session)``; everything is undone afterwards.

    Args:
        latent: a LATENT; its ``noise_mask`` reaches inpainting models as usual, an empty one gets the channels of the
            model.
        conds: CONDITIONING by name. Call them "positive" and "negative" where both exist: ControlNet's and areas' rules
            of the host go by those names; more names may be added freely.
        work: the algorithm. Tensors it returns should be detached; they may live on any device.
        gradients: make gradients with respect to inputs possible (weights stay frozen). Without it, runs under no_grad.
        gradient_checkpointing: with ``gradients``, the network's blocks keep no activations but run again in the
            backward pass (:func:`~...core.gradient_checkpointing.checkpointed`): much less memory, more time; u counts
            the same.
        sigmas: the descending levels about to be visited, which some model patches read; None is the model's range.
        advice: which widget to lower when memory runs out, e.g. "lower batch_size".
        additional_models: other models that ``work`` needs (patchers: a text encoder, a VAE, a classifier). They are
            loaded with ``model`` at once, so that none pushes out another, and with ``gradients`` are usable for
            autograd and frozen.

    Raises:
        EditingError: unusable latent, conditioning of another text encoder, a step cache on the model, or whatever
            ``work`` refuses.
        InterruptProcessingException: the person pressed Cancel (always passes through).
        OOM_EXCEPTION: out of memory, with ``advice`` in the message and still recognised by the host.
    """
    latent = fitted_latent(model, latent)
    clean = latent_to_model(model, latent)
    if sigmas is None:
        sampling = model.get_model_object("model_sampling")
        sigmas = torch.tensor([float(sampling.sigma_max), 0.0])
    sampler = _Work(work, clean)
    if additional_models:
        model = static_patcher(model).clone() if gradients else model.clone()
        model.set_additional_models(WRAPPER_KEY, list(additional_models))
    guider = SessionGuider(
        model, conds, gradients=gradients, gradient_checkpointing=gradient_checkpointing, advice=advice
    )
    samples = host_latent(model, latent["samples"])
    guider.sample(
        torch.zeros_like(samples),
        samples,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        disable_pbar=True,
        seed=seed,
    )
    return sampler.result


def sampling_on(
    model: Any, evaluations: Evaluations, *, gradients: bool = False, advice: str = ADVICE
) -> Callable[[Tensor, Mapping[str, Any], Callable[[Denoiser, Tensor, Mapping[str, Any]], Tensor]], Tensor]:
    """A function ``sampling(latent, conds, work)`` by which an algorithm of the core samples with ``model`` again and
    again.

    ``latent [B, C, H, W]`` is in model units, ``conds`` is CONDITIONING by name. Each call is one :func:`run`, inside
    inference mode as a node's own is, and returns what ``work(denoiser, latent, conds)`` made as a normal tensor.

    Args:
        evaluations: counts those of all calls.
        gradients, advice: see :func:`run`.
    """

    def sampling(
        latent: Tensor, conds: Mapping[str, Any], work: Callable[[Denoiser, Tensor, Mapping[str, Any]], Tensor]
    ) -> Tensor:
        def counted(session: Session) -> Tensor:
            session.denoiser.evaluations = evaluations
            return work(session.denoiser, session.latent, session.conds)

        with torch.inference_mode():
            source = latent_from_model(model, latent)
            made = run(model, source, dict(conds), counted, gradients=gradients, advice=advice)
        with torch.inference_mode(False):
            return made.clone()

    return sampling


def painted_by(
    model: Any,
    sampler: Any,
    sigmas: Tensor,
    cfg: float,
    source: Tensor,
    cells: Tensor,
    noise: Tensor,
    conds: Mapping[str, Any],
    seed: int,
    callback: Callback | None,
) -> Tensor:
    """The host's SamplerCustom with a noise mask: ``source [B, C, h, w]`` in model units painted where ``cells
    [B, 1, h, w]`` is 1.

    Args:
        sampler, sigmas: SAMPLER and SIGMAS.
        noise: ``[B, C, h, w]``, unit variance.
        conds: CONDITIONING by name, "positive" and, unless ``cfg`` is 1, "negative".
    """

    def told(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        if callback is not None:
            callback(Progress(step, total, 0, 1, denoised))

    samples = latent_from_model(model, source)["samples"]
    negative = conds.get("negative", conds["positive"])
    made = comfy.sample.sample_custom(
        model,
        noise.to(samples),
        cfg,
        sampler,
        sigmas,
        conds["positive"],
        negative,
        samples,
        noise_mask=cells,
        callback=told,
        disable_pbar=True,
        seed=seed,
    )
    return latent_to_model(model, {"samples": made})


class _Work(comfy.samplers.Sampler, Generic[T]):
    """A host sampler that runs ``work`` once in place of stepping, and keeps what it returns."""

    result: T

    def __init__(self, work: Callable[[Session], T], clean: Tensor):
        self.work, self.clean = work, clean

    def sample(
        self, model_wrap: SessionGuider, sigmas: Tensor, extra_args: dict[str, Any], *rest: Any, **named: Any
    ) -> Tensor:
        session = model_wrap.session(extra_args["model_options"], self.clean)
        self.result = self.work(session)
        return torch.zeros_like(host_latent(model_wrap.model_patcher, session.latent))


def _with_room(room: int, executor: Any, model: Any, noise_shape: Any, *rest: Any, **named: Any) -> Any:
    return executor(model, [noise_shape[0] * room, *noise_shape[1:]], *rest, **named)


class SessionGuider(comfy.samplers.CFGGuider):
    """A stock guider that can record gradients, explains a lack of memory and leaves nothing behind when it fails."""

    def __init__(
        self,
        model: Any,
        conds: dict[str, list[Any]],
        *,
        gradients: bool = False,
        gradient_checkpointing: bool = False,
        advice: str = ADVICE,
    ):
        super().__init__(model)
        require_conditioning(model, conds)
        require_no_cache(model)
        self.model_patcher: Any
        self.original_conds: dict[str, Any]
        self.model_identity = identity(model)
        self.gradients, self.gradient_checkpointing = gradients, gradient_checkpointing
        self.advice = advice
        self.inner_set_conds(conds)

    def session(self, model_options: dict[str, Any], clean: Tensor) -> Session:
        """The session of the run in progress; ``clean`` is the latent in model space."""
        latent = image_latent(clean).to(self.model_patcher.load_device, torch.float32)
        denoiser = ComfyDenoiser(self.inner_model, model_options, self.model_identity)
        return Session(denoiser, normal_tensors(latent) if self.gradients else latent, self.conds, self.model_patcher)

    def sample(self, noise: Tensor, latent_image: Tensor, *rest: Any, **named: Any) -> Tensor:
        """The host's ``CFGGuider.sample``, with gradients possible inside when this guider wants them."""
        with memory_advice(self.advice), gradient_scope(self.gradients), self._prepared():
            if self.gradients:
                noise, latent_image, rest, named = normal_tensors((noise, latent_image, rest, named))
            return super().sample(noise, latent_image, *rest, **named).detach()

    def outer_sample(self, *arguments: Any, **named: Any) -> Tensor:
        """The host's ``outer_sample``; with gradients it first asks for the memory that saved activations need."""
        if self.gradients:
            kind = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
            wrapper = partial(_with_room, CHECKPOINTED_ROOM if self.gradient_checkpointing else GRADIENT_ROOM)
            comfy.patcher_extension.add_wrapper_with_key(
                kind, WRAPPER_KEY, wrapper, self.model_options, is_model_options=True
            )
        return super().outer_sample(*arguments, **named)

    def inner_sample(self, *arguments: Any, **named: Any) -> Tensor:
        """The host's ``inner_sample``, after loading: the weights become usable for autograd and stay frozen."""
        if not self.gradients:
            return super().inner_sample(*arguments, **named)
        patchers = [patcher for patcher in (self.model_patcher, *self.loaded_models) if hasattr(patcher, "model")]
        for patcher in patchers:
            materialise(patcher.model, patcher.load_device)
        make_differentiable(self.model_options["transformer_options"])
        again = blocks_of(self.inner_model.diffusion_model) if self.gradient_checkpointing else []
        with frozen([patcher.model for patcher in patchers]), checkpointed(again):
            return super().inner_sample(*arguments, **named)

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """Swap in what gradients need, and after an error do the cleaning that the host only does on success."""
        model, conds = self.model_patcher, self.original_conds
        try:
            if self.gradients:
                self.model_patcher = static_patcher(model)
                self.original_conds = normal_tensors(conds)
            yield
        except BaseException:
            if hasattr(self, "loaded_models"):
                comfy.sampler_helpers.cleanup_models(self.conds, self.loaded_models)
            model_management.soft_empty_cache()
            raise
        finally:
            self.model_patcher, self.original_conds = model, conds
            for name in ("inner_model", "loaded_models", "conds"):
                self.__dict__.pop(name, None)


class DenoiserGuider(SessionGuider):
    """A GUIDER for SamplerCustomAdvanced whose prediction is made by a core algorithm.

    ``prepare(session)`` is called once at the start of every sampling run and returns ``step(x, sigma) -> denoised``
    with ``x [B, C, H, W]`` in sigma space and ``sigma`` a float; state of one run lives in what it returns, so that a
    cached GUIDER gives the same picture twice. ``session.latent`` is the LATENT wired into the sampler.
    """

    def __init__(
        self,
        model: Any,
        conds: dict[str, list[Any]],
        prepare: Callable[[Session], Step],
        *,
        gradients: bool = False,
        advice: str = ADVICE,
    ):
        super().__init__(model, conds, gradients=gradients, advice=advice)
        self.prepare = prepare
        self._step: Step | None = None
        self._session: Session | None = None

    def sample(self, noise: Tensor, latent_image: Tensor, *rest: Any, **named: Any) -> Tensor:
        """One sampling run; what ``prepare`` returned for it is dropped at its end."""
        if getattr(latent_image, "is_nested", False) or not isinstance(latent_image, Tensor):
            raise EditingError("This latent is a video or a stack of several latents; wire the latent of still images.")
        if (
            fitted_latent(self.model_patcher, {"samples": latent_image})["samples"].shape[1]
            != image_latent(latent_image).shape[1]
        ):
            raise EditingError(
                f"The sampler's latent has {image_latent(latent_image).shape[1]} channels and the model works on "
                f"{self.model_patcher.model.latent_format.latent_channels}; wire the inversion's noise latent."
            )
        with ExitStack() as stack:
            stack.callback(self._forget)
            return super().sample(noise, latent_image, *rest, **named)

    def inner_sample(self, noise: Tensor, latent_image: Tensor, *rest: Any, **named: Any) -> Tensor:
        """Keep the latent in model space for the session, then go on as the host does."""
        self._clean = self.inner_model.process_latent_in(latent_image)
        return super().inner_sample(noise, latent_image, *rest, **named)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """``step``'s prediction of the clean latent at ``timestep`` (the host's name for sigma, ``[B]``)."""
        options = model_options or {}
        with torch.set_grad_enabled(self.gradients):
            if self._step is None or self._session is None:
                self._session = self.session(options, self._clean)
                self._step = self.prepare(self._session)
            self._session.denoiser.model_options = options
            denoised = self._step(image_latent(x.detach()), float(timestep.reshape(-1)[0])).detach()
            return host_latent(self.model_patcher, denoised)

    def _forget(self) -> None:
        self._step = self._session = None
        self.__dict__.pop("_clean", None)
