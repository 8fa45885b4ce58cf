-- `answer` of the script that shows a pool: how much of each limit is used now, and when it allows the next call. The numbers of its reply:
-- used and time, for each limit in their order.

-- The count of the busiest tenant, among those that called last; nothing when no tenant has one.
local function busiest_of(p, number, limit)
  local busiest
  for _, tenant in ipairs(redis.call('ZREVRANGE', key_of(p, 'tenants/' .. limit.name, ''), 0, 99)) do
    local c = count_of(p, number, tenant, 1)
    if not busiest or c.shape.used(c, p.now) >= busiest.shape.used(busiest, p.now) then busiest = c end
  end
  return busiest
end

local function answer(p)
  local usage = {}
  for number, limit in ipairs(p.spec.limits) do
    local c = limit.per_tenant and busiest_of(p, number, limit) or count_of(p, number, '', 1)
    usage[#usage + 1], usage[#usage + 2] = c.shape.used(c, p.now), c.shape.earliest(c, p.now)
  end
  return reply(p, 'open', usage)
end
