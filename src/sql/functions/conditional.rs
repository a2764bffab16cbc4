//! `if(condition, a, b)`, which is planned as CASE, and `mod(a, b)`, which is `%`.

use arrow::array::{Array, AsArray};
use arrow::compute::kernels::numeric::rem;
use arrow::compute::kernels::zip::zip;
use arrow::compute::prep_null_mask_filter;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::error::Result as PlanResult;
use datafusion::logical_expr::binary::{BinaryTypeCoercer, type_union_coercion};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, when,
};

use super::function::{Call, Function, Param, Shape};
use super::types::type_name;
use crate::error::{Error, Result};

/// `mod`.
pub(super) fn functions() -> Vec<Function> {
    vec![Function::new("mod", &[Param::Any, Param::Any], DataType::Null, modulo).typed(|shape| {
        let (left, right) = (&shape.types[0], &shape.types[1]);
        BinaryTypeCoercer::new(left, &Operator::Modulo, right).get_result_type().map_err(|_| {
            let (left, right) = (type_name(left), type_name(right));
            Error::usage(format!("mod: the arguments must be numbers, not {left} and {right}"))
        })
    })]
}

fn modulo(call: &Call<'_>) -> Result<ColumnarValue> {
    let (left, right) = (call.array(0).data_type(), call.array(1).data_type());
    let (left, right) = BinaryTypeCoercer::new(left, &Operator::Modulo, right).get_input_types()?;
    call.finish(rem(call.datum(0, &left)?.as_ref(), call.datum(1, &right)?.as_ref())?)
}

/// `if`: the branch that is not taken is not computed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct If(Function);

impl If {
    pub(super) fn new() -> Self {
        let choose = Function::new("if", &[Param::Any, Param::Any, Param::Any], DataType::Null, choose);
        Self(choose.typed(common_type))
    }
}

/// The type of both branches.
fn common_type(shape: &Shape<'_>) -> Result<DataType> {
    let (condition, left, right) = (&shape.types[0], &shape.types[1], &shape.types[2]);
    if !matches!(condition, DataType::Boolean | DataType::Null) {
        let found = type_name(condition);
        return Err(Error::usage(format!("if: argument 1 must be a condition, not {found}")));
    }
    type_union_coercion(left, right).ok_or_else(|| {
        let (left, right) = (type_name(left), type_name(right));
        Error::usage(format!("if: the branches have no common type: {left} and {right}"))
    })
}

/// Where the planner left the call alone.
fn choose(call: &Call<'_>) -> Result<ColumnarValue> {
    let condition = arrow::compute::cast(call.array(0), &DataType::Boolean)?;
    let condition = condition.as_boolean();
    let is_true = if condition.null_count() > 0 { &prep_null_mask_filter(condition) } else { condition };
    if call.step(0) == 0 {
        let index = if is_true.value(0) { 1 } else { 2 };
        let chosen = arrow::compute::cast(call.array(index), call.returns)?;
        return Ok(match call.step(index) {
            0 => ColumnarValue::Scalar(ScalarValue::try_from_array(&chosen, 0)?),
            _ => ColumnarValue::Array(chosen),
        });
    }
    let (left, right) = (call.datum(1, call.returns)?, call.datum(2, call.returns)?);
    call.finish(zip(is_true, left.as_ref(), right.as_ref())?)
}

impl ScalarUDFImpl for If {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn return_type(&self, types: &[DataType]) -> PlanResult<DataType> {
        self.0.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> PlanResult<FieldRef> {
        self.0.return_field_from_args(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> PlanResult<ColumnarValue> {
        self.0.invoke_with_args(args)
    }

    fn short_circuits(&self) -> bool {
        true
    }

    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> PlanResult<ExprSimplifyResult> {
        let [condition, left, right] = match <[Expr; 3]>::try_from(args) {
            Ok(args) => args,
            Err(args) => return Ok(ExprSimplifyResult::Original(args)),
        };
        let (left_type, right_type) = (context.get_data_type(&left)?, context.get_data_type(&right)?);
        let Some(common) = type_union_coercion(&left_type, &right_type) else {
            return Ok(ExprSimplifyResult::Original(vec![condition, left, right]));
        };
        let (condition, left, right) = (
            condition.cast_to(&DataType::Boolean, context.schema())?,
            left.cast_to(&common, context.schema())?,
            right.cast_to(&common, context.schema())?,
        );
        Ok(ExprSimplifyResult::Simplified(when(condition, left).otherwise(right)?))
    }
}
