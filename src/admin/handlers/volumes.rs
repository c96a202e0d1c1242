//! Volumes: what there is, who has it, and the removal of what nobody has any more.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::{Answer, paged};
use crate::admin::Admin;
use crate::admin::call::Asked;
use crate::admin::problem::Refusal;
use crate::api::{List, PageQuery, Problem, Volume, VolumeQuery, VolumesQuery};

/// Lists the volumes, with who has each and whether what it was of is gone.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", params(VolumesQuery), responses((status = 200, body = List<Volume>), (status = 503, body = Problem)))]
pub(crate) async fn list(
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<VolumesQuery>,
) -> Answer<List<Volume>> {
    let VolumesQuery { limit, offset, app } = query;
    let all = admin.engine.volumes().await?.into_iter();
    let of_app = all.filter(|volume| app.as_ref().is_none_or(|app| volume.app == *app));
    paged(PageQuery { limit, offset }, of_app).map(Json)
}

/// Removes a volume with what is in it. Refused while something has it, or would find it again.
#[utoipa::path(delete, path = "/v1/volumes", tag = "volumes", params(VolumeQuery), responses((status = 204, description = "it is gone"), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn remove(
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<VolumeQuery>,
) -> Result<StatusCode, Refusal> {
    admin.engine.remove_volume(&query.place).await?;
    Ok(StatusCode::NO_CONTENT)
}
