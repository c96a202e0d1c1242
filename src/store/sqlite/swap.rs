//! The heart: all that one swap changes, in one transaction.

use rusqlite::{Connection, OptionalExtension, named_params};

use super::column::{At, Count, Text, word};
use super::transaction::{Done, Stop, not_found};
use super::{apps, deployments, journal, operations, routes, timers};
use crate::fault;
use crate::store::{
    DeploymentStatus, EventKind, NewEvent, RouteRow, StepEnd, StepOutcome, StoreError, SwapCommitted,
    SwapPlan,
};

pub(super) fn commit(connection: &Connection, plan: &SwapPlan) -> Done<SwapCommitted> {
    let before = apps::require_environment(connection, &plan.app, &plan.environment)?;
    if before.generation != plan.expected_generation {
        return Err(
            StoreError::Outdated { expected: plan.expected_generation, found: before.generation }.into()
        );
    }
    let generation = before.generation + 1;
    make_live(connection, plan, generation)?;
    connection.execute(
        "UPDATE environments SET live = :to, rolled_back = :rolled_back, split = NULL, generation = :generation
         WHERE app = :app AND name = :name",
        named_params! {
            ":to": Text(plan.to),
            ":rolled_back": plan.rolled_back,
            ":generation": Count(generation),
            ":app": Text(&plan.app),
            ":name": Text(&plan.environment),
        },
    )?;
    move_routes(connection, plan)?;
    timers::clear(connection, plan.to)?;
    timers::clear_of(connection, plan.operation)?;
    if let Some(retire) = &plan.retire {
        timers::arm(connection, retire)?;
    }
    if let Some(stopped) = plan.stopped {
        deployments::fall_asleep(connection, stopped)?;
    }
    if let Some(nonce) = &plan.left_over {
        let place = (&plan.app, &plan.environment);
        timers::arm_left_over(connection, place, nonce, plan.at)?;
    }
    journal_it(connection, plan, generation)?;
    fault::at("store.commit_swap.before").map_err(|injected| Stop::Unusable(injected.to_string()))?;
    Ok(SwapCommitted { generation, from: before.live })
}

/// One that failed, was cancelled or superseded never goes live.
fn make_live(connection: &Connection, plan: &SwapPlan, generation: u64) -> Done<()> {
    let status: Option<DeploymentStatus> = connection
        .query_row(
            "SELECT status FROM deployments WHERE id = ?1 AND app = ?2 AND environment = ?3",
            (Text(plan.to), Text(&plan.app), Text(&plan.environment)),
            |row| word(row, "status"),
        )
        .optional()?;
    let status = status.ok_or_else(|| not_found("deployment", plan.to))?;
    if status != DeploymentStatus::Ready
        && !deployments::set_status(connection, plan.to, DeploymentStatus::Ready, None)?
    {
        return Err(not_found("ready deployment", plan.to));
    }
    let query = "UPDATE deployments SET live_at = ?1, live_generation = ?2, failure = NULL WHERE id = ?3";
    connection.execute(query, (At(plan.at), Count(generation), Text(plan.to)))?;
    Ok(())
}

/// Those of the plan, and every `live` one of the environment, whether the plan knew of it or not.
fn move_routes(connection: &Connection, plan: &SwapPlan) -> Done<()> {
    for row in &plan.routes {
        let row = RouteRow {
            host: row.host.clone(),
            sticky: row.sticky,
            app: plan.app.clone(),
            environment: plan.environment.clone(),
            deployment: Some(plan.to),
        };
        routes::refuse_to_unstick(connection, &row)?;
        routes::put(connection, &row)?;
    }
    routes::lead_live(connection, &plan.app, &plan.environment, plan.to)
}

fn journal_it(connection: &Connection, plan: &SwapPlan, generation: u64) -> Done<()> {
    operations::set_cutover(connection, plan.operation, &plan.cutover)?;
    let text = format!("{} serves {}/{}", plan.to, plan.app, plan.environment);
    let event = NewEvent { operation: plan.operation, kind: EventKind::Cutover, text, at: plan.at };
    journal::append(connection, &event)?;
    let end =
        StepEnd { outcome: StepOutcome::Done, detail: Some(format!("generation {generation}")), at: plan.at };
    journal::end_step(connection, plan.operation, "swap", &end)?;
    Ok(())
}
