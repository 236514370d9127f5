"""View `classes`: a contact sheet of a dataset by class."""

from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError
from pc_ewa.viz.colours import by_height
from pc_ewa.viz.pick import shape_name, unit_points
from pc_ewa.viz.scene import Panel, Scene, upright
from pc_ewa.viz.view import View


def classes(clouds: Clouds, *, per_class: int = 1, columns: int | None = None, names: bool = False) -> Scene:
    """Show the first shapes of each class, in the order of the classes.

    Args:
        clouds: the dataset.
        per_class: shapes per class. With 2 or more and without `columns`, each class has its row.
        columns: panels in a row. None chooses.
        names: also write the names of the shapes.

    Raises:
        ConfigError: `per_class` or `columns` below 1.
    """
    if per_class < 1 or (columns is not None and columns < 1):
        raise ConfigError(f"per_class={per_class}, columns={columns}; both must be at least 1")
    panels = []
    for label, name in enumerate(clouds.class_names):
        found = (clouds.labels == label).nonzero().flatten().tolist()
        for index in found[:per_class]:
            points = upright(unit_points(clouds, [index])[0], clouds.up_axis)
            own = shape_name(clouds, index) if names else ""
            panels.append(Panel(points, by_height(points), f"{name} ({len(found)})\n{own}"))
    title = f"{clouds.name}: {len(clouds)} shapes in {clouds.num_classes} classes"
    return Scene(title, panels, columns=columns or (min(per_class, 6) if per_class > 1 else None))


VIEW = View("a contact sheet of a dataset by class", classes)
