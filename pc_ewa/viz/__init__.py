"""Pictures: views make scenes of points, colours and labels; renderers draw them as PNG, SVG, HTML or in a window."""

from pc_ewa.viz.drawing import draw, show_now
from pc_ewa.viz.scene import Chart, Panel, Picture, Scene, upright
from pc_ewa.viz.showing import show
from pc_ewa.viz.view import View
from pc_ewa.viz.views import VIEWS

__all__ = ["show", "draw", "show_now", "VIEWS", "View", "Scene", "Panel", "Chart", "Picture", "upright"]
