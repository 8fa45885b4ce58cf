-- Adds jobs that were read from MongoDB to a stream, and notes when their tenants are to be read again.
-- ARGV: now, streams, epoch, stream, number of tenants, for each tenant: name, when it has more (ms; 0: it has more that is due; -1: nothing),
-- then ids.
-- Gives how many ids were new.
local now, stream = tonumber(ARGV[1]), ARGV[4]
local name = epoch()
if name ~= ARGV[3] then return 0 end
local tenants, ids = tonumber(ARGV[5]), {}
for i = 6 + 2 * tenants, #ARGV do ids[#ids + 1] = ARGV[i] end
local added = #add(stream, ids)
for i = 6, 4 + 2 * tenants, 2 do
  local tenant, more = ARGV[i], tonumber(ARGV[i + 1])
  redis.call('ZREM', key_of(stream, 'reading'), tenant)
  if more > 0 then
    sleep(stream, tenant, number(more))
  elseif more == 0 and added > 0 then
    take_turn(stream, tenant)
  elseif more == 0 then
    -- All that was read is in the stream already: it has to move on first.
    sleep(stream, tenant, number(now + 20))
  end
end
if added > 0 then ring() end
return added
