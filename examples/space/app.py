"""A Space: which emotions are in a voice, in its words, or in both."""

import os

import gradio as gr

from mmemo import EmotionPredictor


predict = EmotionPredictor(os.environ.get("MODEL"))


def answer(audio: str | None, text: str) -> tuple[dict[str, float], dict[str, float]]:
    """The scores of all labels, and how much audio and text had to say.

    Args:
        audio (`str`, *optional*): Path of a clip.
        text (`str`): What is said; may be empty.
    """
    try:
        result = predict(audio, text, return_modality_weights=True)
    except ValueError as error:
        raise gr.Error(str(error)) from error
    return {entry["label"]: entry["score"] for entry in result["scores"]}, result["modality_weights"]


demo = gr.Interface(
    answer,
    inputs=[gr.Audio(type="filepath", label="Voice"), gr.Textbox(label="Words", placeholder="What is said")],
    outputs=[gr.Label(label="Emotion", num_top_classes=4), gr.Label(label="Heard and read")],
    title="mmemo",
    description="Speak, write, or do both. Acted emotion is not felt emotion; decide nothing about a person by this.",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
